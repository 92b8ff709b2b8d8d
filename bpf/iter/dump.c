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

/* For bpf2go, which generates the Go side of the types that the programs use. */
const struct revsk_socket *unused_socket __attribute__((unused));

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

/* Nobody waits for a record: user space reads when the iterator has finished. */
static __always_inline void record_submit(void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

SEC("iter/bpf_sk_storage_map") int dump_conn(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_conn_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_conn_value *v;

	if (!sk || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	v = bpf_sk_storage_get(&revsk_conn, sk, NULL, 0);
	if (!v)
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, bpf_get_socket_cookie(sk));
	record->value.lock.val = 0;
	record->value.bits = v->bits;
	bpf_spin_lock(&v->lock);
	record->value.tuple = v->tuple;
	bpf_spin_unlock(&v->lock);
	record_submit(record);
	return 0;
}

SEC("iter/bpf_sk_storage_map") int dump_former(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_former_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_former_value *v;

	if (!sk || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	v = bpf_sk_storage_get(&revsk_former, sk, NULL, 0);
	if (!v)
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, bpf_get_socket_cookie(sk));
	record->value.lock.val = 0;
	record->value.reserved = 0;
	bpf_spin_lock(&v->lock);
	record->value.tuple = v->tuple;
	bpf_spin_unlock(&v->lock);
	record_submit(record);
	return 0;
}

static __always_inline int finish(void *record, bool whole)
{
	if (whole) {
		record_submit(record);
	} else {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		__sync_fetch_and_add(&revsk_records_torn, 1);
	}
	return 0;
}

/*
 * Emits the tuples of a table, under its lock. What it emits twice, because tuples move to another
 * table at the same time, is of a socket whose record of revsk_peers is lost.
 */
#define DUMP_TABLE(map, class)                                                                     \
	do {                                                                                       \
		__u64 size = sizeof(struct revsk_socket) +                                         \
			     TABLE_TUPLES(class) * sizeof(struct revsk_tuple);                     \
		struct revsk_table_8k_value *v = bpf_sk_storage_get(&map, sk, NULL, 0);            \
		struct revsk_table_record *record = v ? record_reserve(size) : NULL;               \
                                                                                                   \
		if (!record)                                                                       \
			break;                                                                     \
		record_socket(&record->socket, sk, bpf_get_socket_cookie(sk));                     \
		bpf_spin_lock(&v->lock);                                                           \
		for (int i = 0; i < TABLE_TUPLES(class); i++)                                      \
			record->tuples[i] = v->tuples[i];                                          \
		bpf_spin_unlock(&v->lock);                                                         \
		record_submit(record);                                                             \
	} while (0)

#define DUMP_MAP(n)                                                                                \
	do {                                                                                       \
		if (table_has_map(p, n))                                                           \
			DUMP_TABLE(revsk_tab_8k_##n, TABLE_CLASSES);                               \
	} while (0)

static __always_inline void dump_tables(struct sock *sk, const struct revsk_peers_value *p)
{
	switch (p->table_class) {
	case 0:
		return;
	case 1:
		DUMP_TABLE(revsk_tab_512, 1);
		return;
	case 2:
		DUMP_TABLE(revsk_tab_1k, 2);
		return;
	case 3:
		DUMP_TABLE(revsk_tab_2k, 3);
		return;
	case 4:
		DUMP_TABLE(revsk_tab_4k, 4);
		return;
	}
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
}

/* What is beside the slots; the hooks change that one aligned word at a time. */
static __always_inline void copy_control(struct revsk_peers_value *to,
					 const struct revsk_peers_value *from)
{
	to->lock.val = 0;
	to->table_maps = from->table_maps;
	to->has_conn = from->has_conn;
	to->slots_tried = from->slots_tried;
	to->table_version = *(volatile const __u32 *)&from->table_version;
	to->table_count = from->table_count;
	to->table_class = from->table_class;
	__builtin_memset(to->reserved, 0, sizeof(to->reserved));
}

/* The tables of the socket first, then its slots. */
SEC("iter/bpf_sk_storage_map") int dump_peers(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_peers_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_peers_value *v;
	__u32 version;

	if (!sk || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	v = bpf_sk_storage_get(&revsk_peers, sk, NULL, 0);
	if (!v)
		return 0;
	bpf_spin_lock(&v->lock);
	version = v->table_version;
	bpf_spin_unlock(&v->lock);
	dump_tables(sk, v);
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, bpf_get_socket_cookie(sk));
	bpf_spin_lock(&v->lock);
	copy_control(&record->value, v);
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		record->value.slots[i] = v->slots[i];
	bpf_spin_unlock(&v->lock);
	return finish(record, !(version & 1) && record->value.table_version == version);
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

SEC("iter/bpf_sk_storage_map") int dump_conn_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_conn_value *v = ctx->value;
	struct revsk_conn_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	record->value.lock.val = 0;
	record->value.bits = v->bits;
	for (int i = 0; torn && i < ATTEMPTS; i++)
		torn = copy_tuple(&record->value.tuple, &v->tuple, &v->lock);
	return finish(record, !torn);
}

SEC("iter/bpf_sk_storage_map") int dump_former_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_former_value *v = ctx->value;
	struct revsk_former_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	record->value.lock.val = 0;
	record->value.reserved = 0;
	for (int i = 0; torn && i < ATTEMPTS; i++)
		torn = copy_tuple(&record->value.tuple, &v->tuple, &v->lock);
	return finish(record, !torn);
}

SEC("iter/bpf_sk_storage_map") int dump_peers_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_peers_value *v = ctx->value;
	struct revsk_peers_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || !record_is_wanted(sk) || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	copy_control(&record->value, v);
	for (int i = 0; torn && i < ATTEMPTS; i++) {
		torn = 0;
#pragma unroll
		for (int slot = 0; slot < REVSK_SLOTS; slot++)
			torn |= copy_tuple(&record->value.slots[slot], &v->slots[slot], &v->lock);
	}
	return finish(record, !torn);
}

/*
 * Over a table of one class. That tuples have moved to other tables in between is noticed by who reads
 * revsk_peers before and after.
 */
#define DUMP_TABLE_UNLOCKED(name, class)                                                           \
	SEC("iter/bpf_sk_storage_map") int name(struct bpf_iter__bpf_sk_storage_map *ctx)          \
	{                                                                                          \
		const struct revsk_table_##class##_value *v = ctx->value;                          \
		const int tuples = sizeof(v->tuples) / sizeof(v->tuples[0]);                       \
		struct revsk_table_record *record;                                                 \
		struct sock *sk = ctx->sk;                                                         \
		__u64 torn = 1;                                                                    \
                                                                                                   \
		if (!sk || !v || !record_is_wanted(sk) || is_dying(sk))                            \
			return 0;                                                                  \
		record = record_reserve(sizeof(record->socket) + sizeof(v->tuples));               \
		if (!record)                                                                       \
			return 0;                                                                  \
		record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);            \
		for (int i = 0; torn && i < ATTEMPTS; i++) {                                       \
			torn = 0;                                                                  \
			for (int j = 0; j < tuples; j++)                                           \
				torn |= copy_tuple(&record->tuples[j], &v->tuples[j], &v->lock);   \
		}                                                                                  \
		return finish(record, !torn);                                                      \
	}

DUMP_TABLE_UNLOCKED(dump_512_unlocked, 512)
DUMP_TABLE_UNLOCKED(dump_1k_unlocked, 1k)
DUMP_TABLE_UNLOCKED(dump_2k_unlocked, 2k)
DUMP_TABLE_UNLOCKED(dump_4k_unlocked, 4k)
DUMP_TABLE_UNLOCKED(dump_8k_unlocked, 8k)

char _license[] SEC("license") = "Dual BSD/GPL";
