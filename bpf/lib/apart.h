/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Steps as global functions: the verifier walks such a function once, for all its callers, and
 * knows nothing of the arguments. So these are numbers, which is also all that Linux 5.10 takes
 * beside the context, and what a function needs it reads from the socket again.
 *
 * The program that includes this defines APART_CTX, its context, and how to come from that to the socket:
 * apart_socket(ctx), and apart_done(sk) when it is no longer used; and whether its tuples may make room for others:
 * APART_MAY_EVICT.
 */
#pragma once

#include "lb.h"
#include "peers.h"
#include "revnat.h"

/* An address and port as arguments, and back. */
#define SPLIT(ep) (ep)->addr.halves[0], (ep)->addr.halves[1], (ep)->port
#define JOIN(first, last, port_)                                                                   \
	(&(const struct endpoint){ .addr.halves = { first, last }, .port = (port_) })

/* apart_NAME(ctx, ...): what the expression @call about the socket s says; @without if there is no socket. */
#define APART(type, name, without, call, ...)                                                      \
	__noinline type apart_##name(APART_CTX *ctx, __VA_ARGS__)                                  \
	{                                                                                          \
		struct sock_ref s = { .ctx = ctx, .sk = apart_socket(ctx) };                       \
		type result;                                                                       \
                                                                                                   \
		if (!s.sk)                                                                         \
			return without;                                                            \
		result = call;                                                                     \
		apart_done(s.sk);                                                                  \
		return result;                                                                     \
	}

/* table.h and peers.h */

APART(int, table_position, -ENOENT, table_position(&s, JOIN(first, last, port)), __u64 first,
      __u64 last, __u32 port)

static __always_inline int ctx_table_position(struct sock_ref *s, const struct endpoint *peer)
{
	return apart_table_position(s->ctx, SPLIT(peer));
}

APART(int, table_remove, -ENOENT, table_remove(&s, JOIN(first, last, port)), __u64 first,
      __u64 last, __u32 port)

static __always_inline int ctx_table_remove(struct sock_ref *s, const struct endpoint *peer)
{
	return apart_table_remove(s->ctx, SPLIT(peer));
}

static __always_inline __u64 choose_in_bucket(struct sock_ref *s, __u32 number, __u32 bucket)
{
	const struct endpoint actual = sock_peer(s->sk);

	return bucket_choose(s->sk, number, bucket, &actual, ctx_may_evict());
}

APART(__u64, bucket_choose, TABLE_NONE, choose_in_bucket(&s, number, bucket), __u32 number,
      __u32 bucket)

static __always_inline __u64 ctx_bucket_choose(struct sock_ref *s, __u32 number, __u32 bucket)
{
	return apart_bucket_choose(s->ctx, number, bucket);
}

APART(__u64, table_way_out, TABLE_NONE, table_way_out(s.sk, number, position), __u32 number,
      __u32 position)

static __always_inline __u64 ctx_table_way_out(struct sock_ref *s, __u32 number, __u32 position)
{
	return apart_table_way_out(s->ctx, number, position);
}

APART(int, table_move, -ENOENT, table_move(s.sk, peers_get(&s), number, from, to), __u32 number,
      __u32 from, __u32 to)

static __always_inline int ctx_table_move(struct sock_ref *s, __u32 number, __u32 from, __u32 to)
{
	return apart_table_move(s->ctx, number, from, to);
}

APART(int, table_double_part, -ENOENT, table_double_part(s.sk, class, first), __u32 class,
      __u32 first)

static __always_inline int ctx_table_double_part(struct sock_ref *s, __u32 class, __u32 first)
{
	return apart_table_double_part(s->ctx, class, first);
}

APART(int, table_split_part, -ENOENT, table_split_part(s.sk, number, depth, first), __u32 number,
      __u32 depth, __u32 first)

static __always_inline int ctx_table_split_part(struct sock_ref *s, __u32 number, __u32 depth,
						__u32 first)
{
	return apart_table_split_part(s->ctx, number, depth, first);
}

APART(int, table_make_room, -ENOENT, table_make_room(&s, hash), __u32 hash)

static __always_inline int ctx_table_make_room(struct sock_ref *s, __u32 hash)
{
	return apart_table_make_room(s->ctx, hash);
}

APART(int, table_evict, -ENOENT, table_evict(&s, hash, position), __u32 hash, __u32 position)

static __always_inline int ctx_table_evict(struct sock_ref *s, __u32 hash, __u32 position)
{
	return apart_table_evict(s->ctx, hash, position);
}

static __always_inline bool ctx_has_tables(struct sock_ref *s)
{
	return true;
}

static __always_inline bool ctx_may_evict(void)
{
	return APART_MAY_EVICT;
}

/* lb.h */

APART(__u64, choose, LB_UNTRANSLATED, lb_choose_any(&s, JOIN(first, last, port), protocol),
      __u64 first, __u64 last, __u32 port, __u32 protocol)

static __always_inline __u64 choose4(struct sock_ref *s, __be32 addr, __be16 port, __u32 protocol)
{
	const struct endpoint dst = { .addr = ip_from_v4(addr), .port = port };

	return lb_choose_any(s, &dst, protocol);
}

/* For programs that see IPv4 only: without a question for the family. */
APART(__u64, choose4, LB_UNTRANSLATED, choose4(&s, addr, port, protocol), __u32 addr, __u32 port,
      __u32 protocol)

static __always_inline __u64 ctx_choose_any(struct sock_ref *s, const struct endpoint *dst,
					    __u32 protocol, bool v6)
{
	return v6 ? apart_choose(s->ctx, SPLIT(dst), protocol)
		  : apart_choose4(s->ctx, ip_to_v4(&dst->addr), dst->port, protocol);
}

/* conn.h and revnat.h */

APART(int, legacy_is_newer, false, legacy_is_newer(&s, JOIN(first, last, port)), __u64 first,
      __u64 last, __u32 port)

static __always_inline bool ctx_legacy_is_newer(struct sock_ref *s, const struct endpoint *peer)
{
	return apart_legacy_is_newer(s->ctx, SPLIT(peer));
}

APART(int, legacy_delete, false, legacy_delete(sock_cookie(&s), JOIN(first, last, port)),
      __u64 first, __u64 last, __u32 port)

static __always_inline int ctx_legacy_delete(struct sock_ref *s, const struct endpoint *peer)
{
	return apart_legacy_delete(s->ctx, SPLIT(peer));
}

APART(int, legacy_end, 0, legacy_end(&s, JOIN(first, last, port), was_in_storage), __u64 first,
      __u64 last, __u32 port, __u32 was_in_storage)

static __always_inline void ctx_legacy_end(struct sock_ref *s, const struct endpoint *dst,
					   bool was_in_storage)
{
	apart_legacy_end(s->ctx, SPLIT(dst), was_in_storage);
}

APART(int, conn_retire, -ENOENT, conn_retire(&s, JOIN(first, last, port)), __u64 first, __u64 last,
      __u32 port)

static __always_inline int ctx_conn_retire(struct sock_ref *s, const struct endpoint *next)
{
	return apart_conn_retire(s->ctx, SPLIT(next));
}

APART(int, service_stands, false,
      service_stands(&s, JOIN(first, last, port_and_index), port_and_index >> 16, protocol),
      __u64 first, __u64 last, __u32 port_and_index, __u32 protocol)

static __always_inline bool ctx_tuple_stands(struct sock_ref *s, const struct revsk_tuple *t,
					     __u8 protocol)
{
	return apart_service_stands(s->ctx, t->service.halves[0], t->service.halves[1],
				    (__u32)t->rev_nat_index << 16 | t->service_port, protocol);
}
