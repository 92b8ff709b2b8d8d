/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The set of peers that a datagram socket has sent to: a few slots, which the first peers fill, and a table
 * for the others (table.h). A peer is in one place only.
 *
 * If the table can grow no more, one of the tuples in the two buckets that the new one may go to makes
 * room: the one that was not used for longest, where time is counted in new tuples that were in want of its place.
 * So what a socket remembers is bounded, no socket takes anything from another, and no send is
 * refused for want of room. The tuple of the peer that the socket is connected to stays.
 */
#pragma once

#include "legacy.h"
#include "metrics.h"
#include "sock_ref.h"
#include "table.h"

/*
 * Steps that are functions of their own for the verifier (apart.h), each of NAME below as ctx_NAME:
 * what they do with a table it would walk in every place where it is wanted, for each of the maps.
 */
static __always_inline int ctx_table_position(struct sock_ref *s, const struct endpoint *peer);
static __always_inline int ctx_table_remove(struct sock_ref *s, const struct endpoint *peer);
static __always_inline __u64 ctx_bucket_choose(struct sock_ref *s, __u32 number, __u32 bucket);
static __always_inline __u64 ctx_table_way_out(struct sock_ref *s, __u32 number, __u32 position);
static __always_inline int ctx_table_move(struct sock_ref *s, __u32 number, __u32 from, __u32 to);
static __always_inline int ctx_table_make_room(struct sock_ref *s, __u32 hash);
static __always_inline int ctx_table_double_part(struct sock_ref *s, __u32 class, __u32 first);
static __always_inline int ctx_table_split_part(struct sock_ref *s, __u32 number, __u32 depth,
						__u32 first);
static __always_inline int ctx_table_evict(struct sock_ref *s, __u32 hash, __u32 position);
/* Whether this program looks into tables. */
static __always_inline bool ctx_has_tables(struct sock_ref *s);
/* Whether a tuple may make room for another. */
static __always_inline bool ctx_may_evict(void);

static __always_inline struct revsk_peers_value *peers_get(struct sock_ref *s)
{
	return bpf_sk_storage_get(&revsk_peers, s->sk, NULL, 0);
}

/* Splits the map of the last class that @hash is in. Returns 0, or -ENOMEM with nothing changed. */
static __always_inline int table_grow_maps(struct sock_ref *s, struct revsk_peers_value *p,
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
		err = ctx_table_split_part(s, number, depth, first);
	if (!err)
		p->table_maps |= 1 << other;
	table_changes(p);
	return err;
}

/* Makes the table for @hash larger. Returns 0, or -ENOMEM with nothing changed. */
static __always_inline int table_grow(struct sock_ref *s, struct revsk_peers_value *p, __u32 hash)
{
	__u32 class = p->table_class;
	int err = 0;

	if (class >= TABLE_CLASSES)
		return table_grow_maps(s, p, hash);
	if (class >= cfg_table_classes)
		return -ENOMEM;
	if (!class) {
		if (!bpf_sk_storage_get(&revsk_tab_512, s->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE))
			return -ENOMEM;
		p->table_class = 1;
		return 0;
	}
	table_changes(p);
#pragma clang loop unroll(disable)
	for (__u32 first = 0; first < TABLE_TUPLES(TABLE_CLASSES - 1) && !err; first += TABLE_PART)
		if (first < TABLE_TUPLES(class))
			err = ctx_table_double_part(s, class, first);
	if (!err) {
		table_delete(s->sk, class);
		p->table_class++;
		p->table_maps = 1; /* of the last class; of others it says nothing */
	}
	table_changes(p);
	return err;
}

/* The position of the tuple for @peer in the table, or -ENOENT. */
static __always_inline int table_position(struct sock_ref *s, const struct endpoint *peer)
{
	__u32 hash = peer_hash(peer);
	struct revsk_peers_value *p = peers_get(s);

	return p ? position_in(table_get(s->sk, p, hash), hash, peer) : -ENOENT;
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

/*
 * Whether there is a tuple for @peer. Cheaper for the verifier than to find it: there is no
 * pointer, into a slot or one of many tables.
 */
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
 * @t is about to be evicted: counts it, and deletes its entry from the hash. No connection needs
 * that entry: it would be to the socket's actual peer, and a tuple of that is not evicted.
 */
static __always_inline void tuple_evicted(struct sock_ref *s, const struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);

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
static __always_inline int table_evict(struct sock_ref *s, __u64 hash, __u64 position)
{
	struct revsk_peers_value *p = peers_get(s);
	struct table_ref r;

	if (!p)
		return -ENOENT;
	r = table_get(s->sk, p, hash);
	if (!r.t)
		return -ENOENT;
	tuple_evicted(s, table_at(r, position));
	p->table_count--;
	return 0;
}

/* Out of line, for the stack. */
static __noinline __u32 table_number_apart(const struct revsk_peers_value *p, __u32 hash)
{
	return p ? table_number(p, hash) : 0;
}

static __always_inline __u64 table_choose(struct sock_ref *s, const struct revsk_peers_value *p,
					  __u64 hash)
{
	__u32 number = table_number_apart(p, hash);

	if (!p->table_class)
		return TABLE_NONE;
	return smaller(ctx_bucket_choose(s, number, hash),
		       ctx_bucket_choose(s, number, second_bucket(hash)));
}

/* Makes room in the buckets of @hash by moving a tuple to its other bucket. Returns 0 or -ENOENT. */
static __always_inline int table_relocate(struct sock_ref *s, __u32 number, __u64 hash)
{
	__u64 best = TABLE_TAKEN;

#pragma clang loop unroll(disable)
	for (int i = 0; i < TABLE_WAYS; i++) {
		best = smaller(ctx_table_way_out(s, number, hash * TABLE_WAYS + i), best);
		best = smaller(ctx_table_way_out(s, number, second_bucket(hash) * TABLE_WAYS + i),
			       best);
	}
	if (best >= TABLE_TAKEN)
		return -ENOENT;
	return ctx_table_move(s, number, best >> 8 & 0xff, best & 0xff);
}

/* Makes room for @hash in the table, or a table. Returns 0, or an error if no more can be made. */
static __always_inline int table_make_room(struct sock_ref *s, __u32 hash)
{
	struct revsk_peers_value *p = peers_get(s);

	if (!p)
		return -ENOENT;
	if (p->table_class && !table_relocate(s, table_number(p, hash), hash))
		return 0;
	return table_grow(s, p, hash);
}

/* How often a table may grow for one tuple; more than once is rare. */
#define TABLE_ATTEMPTS 8

/*
 * The place for a new tuple: a free one, for which the table grows if need be; else that of the
 * tuple to evict.
 */
static __always_inline __u64 table_place(struct sock_ref *s, const struct revsk_peers_value *p,
					 __u32 hash)
{
	__u64 key = table_choose(s, p, hash);
	int attempts = 0;

	if (key < TABLE_TAKEN)
		return key;
	/* Linux 6.1 and older refuse a loop that does not end with a jump. */
#pragma clang loop unroll(disable)
	do {
		if (ctx_table_make_room(s, hash))
			break;
		key = table_choose(s, p, hash);
	} while (key >= TABLE_TAKEN && ++attempts < TABLE_ATTEMPTS);
	return key;
}

/* Adds a tuple for a peer that the socket does not have. Returns 0, or -ENOMEM. */
static __noinline int peers_add(struct sock_ref *s, struct revsk_peers_value *p,
				const struct revsk_tuple *t)
{
	__u64 key, hash;

	if (!p || !t)
		return -EINVAL;
	/* Slots make room only where there is no memory for a table. */
	if (!p->table_class && ctx_may_evict())
		tuples_age(p->slots, REVSK_SLOTS);
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
	key = table_place(s, p, hash);
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

/* Removes the tuple for @peer from the table. Returns 0 or -ENOENT. */
static __always_inline int table_remove(struct sock_ref *s, const struct endpoint *peer)
{
	struct revsk_peers_value *p = peers_get(s);
	int position = ctx_table_position(s, peer);
	const struct revsk_tuple none = {};

	if (!p || position < 0 || table_write(s, p, peer_hash(peer), position, &none))
		return -ENOENT;
	p->table_count--;
	return 0;
}

/* Removes the tuple for @peer; false if there is none. */
static __always_inline bool peers_remove(struct sock_ref *s, struct revsk_peers_value *p,
					 const struct endpoint *peer)
{
	struct revsk_tuple *slot = slot_find(p, peer);
	const struct revsk_tuple none = {};

	if (slot) {
		slot_write(p, slot, &none);
		return true;
	}
	if (!p->table_class || !ctx_has_tables(s))
		return false;
	return !ctx_table_remove(s, peer);
}
