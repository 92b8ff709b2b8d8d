//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Iterators over the storage maps: each emits a record for every socket that has storage in the
 * map, in every network namespace.
 *
 * They run beside the hooks, which change a tuple under the lock of its value. A reader that takes
 * that lock never sees half a tuple. It can be taken through the pointer that bpf_sk_storage_get
 * returns, not through the context's, and iterators have that helper since 5.11 (and the one that
 * makes the socket's cookie since 5.12): for older kernels there are variants that do without,
 * dump_*_unlocked. The loader takes one or the other.
 */
#include "record.h"
#include "wanted.h"

/* For bpf2go, which generates the Go side of the types that the programs use. */
const struct revsk_socket *unused_socket __attribute__((unused));
const enum revsk_wanted *unused_wanted __attribute__((unused));

/*
 * The last reference to the socket is gone: its memory may be about to be used for another.
 *
 * A UDP socket whose count is not 0 here stays what it is until the program ends, because its memory
 * is freed after an RCU grace period; TCP sockets' memory stays that of some TCP socket.
 */
static __always_inline bool is_dying(struct sock *sk)
{
	return !sk->__sk_common.skc_refcnt.refs.counter;
}

/* A copy of a tuple that nobody is just writing. */
#define COPY_LOCKED(to, from, lock)                                                                \
	do {                                                                                       \
		bpf_spin_lock(lock);                                                               \
		to = from;                                                                         \
		bpf_spin_unlock(lock);                                                             \
	} while (0)

static const struct revsk_tuple no_tuple = {};

/*
 * Adds the tuples of a table at @end, under its lock, and moves @end. Leaves the function if there is
 * no room.
 */
#define DUMP_TABLE(map, class)                                                                     \
	do {                                                                                       \
		struct revsk_table_8k_value *v = bpf_sk_storage_get(&map, sk, NULL, 0);            \
		struct revsk_tuple *to;                                                            \
                                                                                                   \
		if (!v)                                                                            \
			break;                                                                     \
		end = unknown(end);                                                                \
		to = room_at(end, TABLE_TUPLES(class) * sizeof(*to));                              \
		if (!to)                                                                           \
			return 0;                                                                  \
		bpf_spin_lock(&v->lock);                                                           \
		for (int i = 0; i < TABLE_TUPLES(class); i++)                                      \
			to[i] = v->tuples[i];                                                      \
		bpf_spin_unlock(&v->lock);                                                         \
		end += TABLE_TUPLES(class) * sizeof(*to);                                          \
	} while (0)

#define DUMP_MAP(n)                                                                                \
	do {                                                                                       \
		if (table_has_map(p, n))                                                           \
			DUMP_TABLE(revsk_tab_8k_##n, TABLE_CLASSES);                               \
	} while (0)

/*
 * Sockets whose tables are of the largest class. To walk all maps of those takes the verifier 30
 * times as long as the rest, and they are few: user space loads dump_large when there is one.
 */
__u64 revsk_large_tables = 0;

/* These return the new @end; 0 if there is no room. */
static __always_inline __u64 dump_table(struct sock *sk, const struct revsk_peers_value *p,
					__u64 end)
{
	switch (p->table_class) {
	case 1:
		DUMP_TABLE(revsk_tab_512, 1);
		break;
	case 2:
		DUMP_TABLE(revsk_tab_1k, 2);
		break;
	case 3:
		DUMP_TABLE(revsk_tab_2k, 3);
		break;
	case 4:
		DUMP_TABLE(revsk_tab_4k, 4);
		break;
	}
	return end;
}

static __always_inline __u64 dump_large_tables(struct sock *sk, const struct revsk_peers_value *p,
					       __u64 end)
{
	DUMP_MAP(0);
	DUMP_MAP(1);
	DUMP_MAP(2);
	DUMP_MAP(3);
	DUMP_MAP(4);
	DUMP_MAP(5);
	DUMP_MAP(6);
	DUMP_MAP(7);
	DUMP_MAP(8);
	DUMP_MAP(9);
	DUMP_MAP(10);
	DUMP_MAP(11);
	DUMP_MAP(12);
	DUMP_MAP(13);
	DUMP_MAP(14);
	DUMP_MAP(15);
	return end;
}

/* What the socket is connected to, and was before. Returns whether there is a former connection. */
static __always_inline bool dump_connection(struct sock *sk, struct revsk_tuple *to)
{
	struct revsk_conn_value *conn = bpf_sk_storage_get(&revsk_conn, sk, NULL, 0);
	struct revsk_former_value *former = NULL;

	if (!conn) {
		to[0] = no_tuple;
		return false;
	}
	COPY_LOCKED(to[0], conn->tuple, &conn->lock);
	if (!(conn->bits & REVSK_CONN_HAS_FORMER))
		return false;
	former = bpf_sk_storage_get(&revsk_former, sk, NULL, 0);
	if (!former)
		return false;
	COPY_LOCKED(to[1], former->tuple, &former->lock);
	return true;
}

/* Sockets that have been connected, and have no value in revsk_peers. */
SEC("iter/bpf_sk_storage_map") int dump_conn(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct revsk_record *r;
	struct endpoint peer;
	__u64 begin;
	bool former;

	if (!sk || !is_in_part(sk) || !socket_is_wanted(sk) || is_dying(sk))
		return 0;
	if (bpf_sk_storage_get(&revsk_peers, sk, NULL, 0))
		return 0;
	begin = unknown(revsk_position);
	r = room_at(begin, RECORD_SIZE(2));
	if (!r)
		return 0;
	former = dump_connection(sk, r->tuples);
	peer = actual_peer(&sk->__sk_common);
	if (tuples_matter() && !tuple_is_wanted(&r->tuples[0], &peer, sk->sk_protocol) &&
	    !(former && tuple_is_wanted(&r->tuples[1], &peer, sk->sk_protocol)))
		return 0;
	record_socket(&r->socket, sk, bpf_get_socket_cookie(sk));
	record_keep(&r->socket, sk, begin, 1 + former);
	return 0;
}

/* Whether one of the tuples is wanted, of a socket without a table. */
static __always_inline bool record_is_wanted(const struct revsk_record *r, struct sock *sk)
{
	const struct endpoint peer = actual_peer(&sk->__sk_common);

	if (!tuples_matter())
		return true;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 2 + REVSK_SLOTS; i++)
		if (tuple_is_wanted(&r->tuples[i], &peer, sk->sk_protocol))
			return true;
	return false;
}

/* A socket that has sent, and all that it holds. */
static __always_inline int dump_sent(struct bpf_iter__bpf_sk_storage_map *ctx, bool large)
{
	struct sock *sk = ctx->sk;
	struct revsk_peers_value *p;
	struct revsk_record *r;
	__u32 version, now;
	__u64 begin, end;

	if (!sk || !is_in_part(sk) || !socket_is_wanted(sk) || is_dying(sk))
		return 0;
	p = bpf_sk_storage_get(&revsk_peers, sk, NULL, 0);
	if (!p)
		return 0;
	bpf_spin_lock(&p->lock);
	version = p->table_version;
	bpf_spin_unlock(&p->lock);
	if ((p->table_class == TABLE_CLASSES) != large) {
		revsk_large_tables += !large;
		return 0;
	}
	begin = unknown(revsk_position);
	r = room_at(begin, sizeof(*r));
	if (!r)
		return 0;
	if (!dump_connection(sk, r->tuples))
		r->tuples[1] = no_tuple;
	end = begin + sizeof(*r);
	/* That the table has grown into another class meanwhile shows in the version. */
	end = large ? dump_large_tables(sk, p, end) : dump_table(sk, p, end);
	if (!end)
		return 0;
	/* After the tables: a tuple that has moved from one to another changes the version. */
	bpf_spin_lock(&p->lock);
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		r->tuples[2 + i] = p->slots[i];
	now = p->table_version;
	bpf_spin_unlock(&p->lock);
	if ((version & 1) || now != version) {
		__sync_fetch_and_add(&revsk_records_torn, 1);
		return 0;
	}
	if (end == begin + sizeof(*r) && !record_is_wanted(r, sk))
		return 0;
	record_socket(&r->socket, sk, bpf_get_socket_cookie(sk));
	record_keep(&r->socket, sk, begin,
		    (__u16)((end - begin - sizeof(r->socket)) / sizeof(struct revsk_tuple)));
	return 0;
}

SEC("iter/bpf_sk_storage_map") int dump_peers(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	return dump_sent(ctx, false);
}

SEC("iter/bpf_sk_storage_map") int dump_large(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	return dump_sent(ctx, true);
}

/*
 * Without the lock: the tuple is read twice, and the word of the lock in between. If nobody has the
 * lock then and both readings agree, no hook was writing while either was made. A hook writes for
 * some nanoseconds, so a few attempts are enough; the record of a socket that still fails is lost,
 * and counted as such.
 */
#define ATTEMPTS 8

#define barrier() asm volatile("" ::: "memory")

/*
 * Returns 0 if @to is a whole tuple. Computed without branches: with them the verifier would have
 * to follow each combination of them over all slots and attempts.
 */
static __always_inline __u64 copy_tuple(struct revsk_tuple *to, const struct revsk_tuple *from,
					const struct bpf_spin_lock *lock)
{
	const __u64 *first = (const void *)to, *second = (const void *)from;
	__u64 differ;

	*to = *from;
	barrier();
	differ = *(volatile __u32 *)&lock->val;
	barrier();
#pragma unroll
	for (unsigned long i = 0; i < sizeof(*to) / sizeof(*first); i++)
		differ |= first[i] ^ second[i];
	return differ;
}

/*
 * Over one map. A socket has a record for each of its maps, which user space puts together; that
 * tuples have moved from one table to another in between is noticed by who reads revsk_peers before
 * and after.
 */
#define DUMP_UNLOCKED(name, type, first, n, version)                                               \
	SEC("iter/bpf_sk_storage_map") int name(struct bpf_iter__bpf_sk_storage_map *ctx)          \
	{                                                                                          \
		const struct type *v = ctx->value;                                                 \
		struct sock *sk = ctx->sk;                                                         \
		struct revsk_record *r;                                                            \
		__u64 begin, torn = 1;                                                             \
                                                                                                   \
		if (!sk || !v || !is_in_part(sk) || !socket_is_wanted(sk) || is_dying(sk))         \
			return 0;                                                                  \
		begin = unknown(revsk_position);                                                   \
		r = room_at(begin, RECORD_SIZE(n));                                                \
		if (!r)                                                                            \
			return 0;                                                                  \
		record_socket(&r->socket, sk, sk->__sk_common.skc_cookie.counter);                 \
		r->socket.table_version = (__u16)(version);                                        \
		for (int i = 0; torn && i < ATTEMPTS; i++) {                                       \
			torn = 0;                                                                  \
			for (int j = 0; j < (n); j++)                                              \
				torn |= copy_tuple(&r->tuples[j], &(&v->first)[j], &v->lock);      \
		}                                                                                  \
		if (torn)                                                                          \
			__sync_fetch_and_add(&revsk_records_torn, 1);                              \
		else                                                                               \
			record_keep(&r->socket, sk, begin, n);                                     \
		return 0;                                                                          \
	}

DUMP_UNLOCKED(dump_conn_unlocked, revsk_conn_value, tuple, 1, 0)
DUMP_UNLOCKED(dump_former_unlocked, revsk_former_value, tuple, 1, 0)
DUMP_UNLOCKED(dump_peers_unlocked, revsk_peers_value, slots[0], REVSK_SLOTS,
	      *(volatile const __u32 *)&v->table_version)
DUMP_UNLOCKED(dump_512_unlocked, revsk_table_512_value, tuples[0], TABLE_TUPLES(1), 0)
DUMP_UNLOCKED(dump_1k_unlocked, revsk_table_1k_value, tuples[0], TABLE_TUPLES(2), 0)
DUMP_UNLOCKED(dump_2k_unlocked, revsk_table_2k_value, tuples[0], TABLE_TUPLES(3), 0)
DUMP_UNLOCKED(dump_4k_unlocked, revsk_table_4k_value, tuples[0], TABLE_TUPLES(4), 0)
DUMP_UNLOCKED(dump_8k_unlocked, revsk_table_8k_value, tuples[0], TABLE_TUPLES(5), 0)

char _license[] SEC("license") = "Dual BSD/GPL";
