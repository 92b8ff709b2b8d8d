/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The set of peers that a datagram socket has sent to: a few slots, which the first peers fill, and a table
 * for the others (table.h). A peer is in one place only.
 *
 * If the table can grow no more, one of the tuples in the two buckets that the new one may go to makes
 * room: the one that was not used for longest, as far as those are concerned which were considered before.
 * So what a socket remembers is bounded, no socket takes anything from another, and no send is
 * refused for want of room. The tuple of the peer that the socket is connected to stays.
 */
#pragma once

#include "legacy.h"
#include "metrics.h"
#include "sock_ref.h"
#include "table.h"

/*
 * What is to be done with a table, by hash and position: table_position, and the steps of making room. The
 * program that includes the library defines them, as functions that the verifier walks once.
 */
static __always_inline int ctx_table_position(struct sock_ref *s, const struct endpoint *peer);
static __always_inline __u64 ctx_table_choose(struct sock_ref *s, __u32 hash);
static __always_inline int ctx_table_relocate(struct sock_ref *s, __u32 hash);
static __always_inline int ctx_table_grow(struct sock_ref *s, __u32 hash);
static __always_inline int ctx_table_split_part(void *ctx, void *sk, __u32 number, __u32 depth,
						__u32 first);
static __always_inline int ctx_table_evict(struct sock_ref *s, __u32 hash, __u32 position);
/* Whether this program looks into tables. */
static __always_inline bool ctx_has_tables(struct sock_ref *s);
/* How often the table may grow for one tuple; more than once is rare. */
static __always_inline int ctx_table_attempts(void);
/* Whether a tuple may make room for another. */
static __always_inline bool ctx_may_evict(void);

static __always_inline struct revsk_peers_value *peers_get(struct sock_ref *s)
{
	return bpf_sk_storage_get(&revsk_peers, s->sk, NULL, 0);
}

/* Splits the map of the last class that @hash is in. Returns 0, or -ENOMEM with nothing changed. */
static __always_inline int table_grow_maps(void *ctx, void *sk, struct revsk_peers_value *p,
					   __u32 hash)
{
	__u32 number = table_number(p, hash), depth = 0, other;
	int err = 0;

	if (bits_set(p->table_maps) >= cfg_table_maps)
		return -ENOMEM;
	/* The map was made for so many bits of the hash, and has been split by some since. */
#pragma unroll
	for (int i = 0; i < 4; i++)
		if (number >> depth || table_has_map(p, number | 1 << depth))
			depth++;
	if (depth > 3)
		return -ENOMEM;
	other = number | 1 << depth;
	table_changes(p);
	/* The first part says whether there is memory for the other map. */
#pragma clang loop unroll(disable)
	for (__u32 first = 0; first < TABLE_TUPLES(TABLE_CLASSES) && !err; first += TABLE_PART)
		err = ctx_table_split_part(ctx, sk, number, depth, first);
	if (!err)
		p->table_maps |= 1 << other;
	table_changes(p);
	return err;
}

/* Makes the table for @hash larger. Returns 0, or -ENOMEM with nothing changed. */
static __always_inline int table_grow(void *ctx, void *sk, struct revsk_peers_value *p, __u32 hash)
{
	void *to = NULL;

	if (p->table_class >= TABLE_CLASSES)
		return table_grow_maps(ctx, sk, p, hash);
	if (p->table_class >= cfg_table_classes)
		return -ENOMEM;
	switch (p->table_class) {
	case 0:
		if (!bpf_sk_storage_get(&revsk_tab_512, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE))
			return -ENOMEM;
		p->table_class = 1;
		return 0;
#define TABLE_DOUBLE(class, small, large)                                                          \
	case class: {                                                                              \
		struct revsk_table_512_value *from = bpf_sk_storage_get(&small, sk, NULL, 0);      \
                                                                                                   \
		if (!from)                                                                         \
			return -ENOMEM;                                                            \
		to = bpf_sk_storage_get(&large, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);            \
		if (!to)                                                                           \
			return -ENOMEM;                                                            \
		table_changes(p);                                                                  \
		table_double(to, from, 1 << class);                                                \
		bpf_sk_storage_delete(&small, sk);                                                 \
		break;                                                                             \
	}
		TABLE_DOUBLE(1, revsk_tab_512, revsk_tab_1k)
		TABLE_DOUBLE(2, revsk_tab_1k, revsk_tab_2k)
		TABLE_DOUBLE(3, revsk_tab_2k, revsk_tab_4k)
		TABLE_DOUBLE(4, revsk_tab_4k, revsk_tab_8k_0)
#undef TABLE_DOUBLE
	default:
		return -ENOMEM;
	}
	p->table_class++;
	p->table_maps = 1; /* of the last class; of others it says nothing */
	table_changes(p);
	return 0;
}

/* The tuple for @peer, or NULL. */
static __noinline struct revsk_tuple *
table_find(struct sock_ref *s, const struct revsk_peers_value *p, const struct endpoint *peer)
{
	__u64 hash = peer_hash(peer);
	struct table_ref r = table_get(s->sk, p, hash);

	return r.t ? table_search(r, hash, peer) : NULL;
}

/* Writes @t to a place that table_choose or table_position has named. */
static __noinline int table_write(struct sock_ref *s, const struct revsk_peers_value *p, __u64 hash,
				  __u64 position, const struct revsk_tuple *t)
{
	struct table_ref r = table_get(s->sk, p, hash);
	struct revsk_tuple *place;

	if (!r.t)
		return -ENOMEM;
	place = table_at(r, position);
	bpf_spin_lock(&r.t->lock);
	*place = *t;
	bpf_spin_unlock(&r.t->lock);
	return 0;
}

static __always_inline struct revsk_tuple *slot_find(struct revsk_peers_value *p,
						     const struct endpoint *peer)
{
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS && i < p->slots_tried; i++)
		if (tuple_has_peer(&p->slots[i], peer))
			return &p->slots[i];
	return NULL;
}

static __always_inline struct revsk_tuple *
peers_find(struct sock_ref *s, struct revsk_peers_value *p, const struct endpoint *peer)
{
	struct revsk_tuple *t = slot_find(p, peer);

	if (t || !p->table_class || !ctx_has_tables(s))
		return t;
	return table_find(s, p, peer);
}

/* For who does not want the tuple: the verifier need not tell apart where it may be. */
static __always_inline bool peers_has(struct sock_ref *s, struct revsk_peers_value *p,
				      const struct endpoint *peer)
{
	if (!p)
		return false;
	return slot_find(p, peer) ||
	       (p->table_class && ctx_has_tables(s) && ctx_table_position(s, peer) >= 0);
}

static __always_inline void slot_write(struct revsk_peers_value *p, struct revsk_tuple *slot,
				       const struct revsk_tuple *t)
{
	bpf_spin_lock(&p->lock);
	*slot = *t;
	bpf_spin_unlock(&p->lock);
}

/* Replaces the tuple for a peer that the socket has. */
static __always_inline void peers_replace(struct sock_ref *s, struct revsk_peers_value *p,
					  const struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);
	struct revsk_tuple *slot = slot_find(p, &peer);

	if (slot)
		slot_write(p, slot, t);
	else if (ctx_has_tables(s))
		table_write(s, p, tuple_hash(t), ctx_table_position(s, &peer), t);
}

/*
 * What evicting @t means elsewhere. The entry of the hash is not what a connection needs, too: that is to the socket's actual
 * peer, whose tuple is not evicted.
 */
static __always_inline void tuple_evicted(struct sock_ref *s, const struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);

	if (t->flags & REVSK_TUPLE_ENDED)
		return;
	if (mode_has_hash(current_mode()))
		legacy_delete(sock_cookie(s), &peer);
	count(REVSK_EVICTED);
}

/* There is no memory for the smallest table: @t takes the place of the tuple in a slot. */
static __noinline int slots_evict(struct sock_ref *s, struct revsk_peers_value *p,
				  const struct revsk_tuple *t)
{
	const struct endpoint actual = sock_peer(s->sk);
	__u64 best = TABLE_NONE >> 1;

#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		best = smaller(place_key(&p->slots[i], &actual, 0) | i, best);
	best &= 3;
	opaque(best); /* so that the very register that is compared is used: see table.h */
	if (best >= REVSK_SLOTS)
		return -ENOMEM;
	tuple_evicted(s, &p->slots[best]);
	slot_write(p, &p->slots[best], t);
	return 0;
}

/* The tuple at a position of the table makes room. */
static __always_inline int table_evict(struct sock_ref *s, struct revsk_peers_value *p, __u64 hash,
				       __u64 position)
{
	struct table_ref r = table_get(s->sk, p, hash);

	if (!r.t)
		return -ENOMEM;
	table_age(r, hash);
	tuple_evicted(s, table_at(r, position));
	p->table_count--;
	return 0;
}

/* What table_choose says when there is room, or when no more can be made. */
static __always_inline __u64 table_place(struct sock_ref *s, __u32 hash)
{
	__u64 key = TABLE_NONE;

	for (int i = 0; i <= ctx_table_attempts(); i++) {
		key = ctx_table_choose(s, hash);
		if (key < TABLE_TAKEN || i == ctx_table_attempts())
			break;
		if (ctx_table_relocate(s, hash) && ctx_table_grow(s, hash))
			break;
	}
	return key;
}

/* Adds a tuple for a peer that the socket does not have. Returns 0, or -ENOMEM. */
static __noinline int peers_add(struct sock_ref *s, struct revsk_peers_value *p,
				const struct revsk_tuple *t)
{
	__u64 key, hash;

	if (!p || !t)
		return -EINVAL;
	for (int i = 0; i < REVSK_SLOTS; i++) {
		if (!p->slots[i].peer_port) {
			slot_write(p, &p->slots[i], t);
			if (p->slots_tried <= i)
				p->slots_tried = i + 1;
			return 0;
		}
	}
	if (!ctx_has_tables(s))
		return -ENOMEM;
	hash = tuple_hash(t);
	key = table_place(s, hash);
	if (key >= TABLE_TAKEN) {
		if (!ctx_may_evict())
			return -ENOMEM;
		if (key == TABLE_NONE)
			return slots_evict(s, p, t);
		if (ctx_table_evict(s, hash, key))
			return -ENOMEM;
	}
	if (table_write(s, p, hash, key, t))
		return -ENOMEM;
	p->table_count++;
	return 0;
}

/* Removes the tuple for @peer; false if there is none. */
static __always_inline bool peers_remove(struct sock_ref *s, struct revsk_peers_value *p,
					 const struct endpoint *peer)
{
	struct revsk_tuple *slot = slot_find(p, peer);
	const struct revsk_tuple none = {};
	int position;

	if (slot) {
		slot_write(p, slot, &none);
		return true;
	}
	if (!p->table_class || !ctx_has_tables(s))
		return false;
	position = ctx_table_position(s, peer);
	if (position < 0 || table_write(s, p, peer_hash(peer), position, &none))
		return false;
	p->table_count--;
	return true;
}
