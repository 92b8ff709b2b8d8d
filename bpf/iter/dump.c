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

SEC("iter/bpf_sk_storage_map") int dump_conn(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_conn_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_conn_value *v;

	if (!sk || is_dying(sk))
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
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("iter/bpf_sk_storage_map") int dump_former(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_former_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_former_value *v;

	if (!sk || is_dying(sk))
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
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* What follows the lock; the hooks change that without taking it, one aligned word at a time. */
static __always_inline void copy_chain(struct revsk_peers_value *to,
				       const struct revsk_peers_value *from)
{
	to->lock.val = 0;
	to->chain_len = from->chain_len;
	to->cookie = from->cookie;
	to->head = from->head;
	to->head_port = from->head_port;
	to->victim = from->victim;
	to->chain_hits = from->chain_hits;
	to->has_conn = from->has_conn;
	to->slots_tried = from->slots_tried;
	__builtin_memset(to->pad, 0, sizeof(to->pad));
}

SEC("iter/bpf_sk_storage_map") int dump_peers(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct revsk_peers_record *record;
	struct sock *sk = ctx->sk;
	struct revsk_peers_value *v;

	if (!sk || is_dying(sk))
		return 0;
	v = bpf_sk_storage_get(&revsk_peers, sk, NULL, 0);
	if (!v)
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, bpf_get_socket_cookie(sk));
	copy_chain(&record->value, v);
	bpf_spin_lock(&v->lock);
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		record->value.slots[i] = v->slots[i];
	bpf_spin_unlock(&v->lock);
	bpf_ringbuf_submit(record, 0);
	return 0;
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

static __always_inline int finish_unlocked(void *record, bool whole)
{
	if (whole) {
		bpf_ringbuf_submit(record, 0);
	} else {
		bpf_ringbuf_discard(record, 0);
		__sync_fetch_and_add(&revsk_records_lost, 1);
	}
	return 0;
}

SEC("iter/bpf_sk_storage_map") int dump_conn_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_conn_value *v = ctx->value;
	struct revsk_conn_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	record->value.lock.val = 0;
	record->value.bits = v->bits;
	for (int i = 0; torn && i < ATTEMPTS; i++)
		torn = copy_tuple(&record->value.tuple, &v->tuple, &v->lock);
	return finish_unlocked(record, !torn);
}

SEC("iter/bpf_sk_storage_map") int dump_former_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_former_value *v = ctx->value;
	struct revsk_former_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	record->value.lock.val = 0;
	record->value.reserved = 0;
	for (int i = 0; torn && i < ATTEMPTS; i++)
		torn = copy_tuple(&record->value.tuple, &v->tuple, &v->lock);
	return finish_unlocked(record, !torn);
}

SEC("iter/bpf_sk_storage_map") int dump_peers_unlocked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_peers_value *v = ctx->value;
	struct revsk_peers_record *record;
	struct sock *sk = ctx->sk;
	__u64 torn = 1;

	if (!sk || !v || is_dying(sk))
		return 0;
	record = record_reserve(sizeof(*record));
	if (!record)
		return 0;
	record_socket(&record->socket, sk, sk->__sk_common.skc_cookie.counter);
	copy_chain(&record->value, v);
	for (int i = 0; torn && i < ATTEMPTS; i++) {
		torn = 0;
#pragma unroll
		for (int slot = 0; slot < REVSK_SLOTS; slot++)
			torn |= copy_tuple(&record->value.slots[slot], &v->slots[slot], &v->lock);
	}
	return finish_unlocked(record, !torn);
}

char _license[] SEC("license") = "Dual BSD/GPL";
