/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The table of a socket with more peers than slots: further storage on the socket, in which a peer has
 * its place by its hash. The slots stay in use beside it.
 *
 * A table is an array of buckets of four tuples. A peer is in one of two buckets, of which one is even and
 * the other odd; it is added to the emptier one. A full table grows: to one of twice as many buckets, where
 * the tuple at position i of bucket b goes to position i of bucket b or b + the former number of buckets, so
 * that nothing has to be searched and nothing can collide; or, from the largest size on, by splitting over up
 * to 16 maps by further bits of the hash (extendible hashing), where a tuple keeps its position or goes to
 * the same one of another map. A tuple that leaves is zeroed: no index, no tombstones, no free list.
 *
 * The kernel puts 72 bytes before a storage value and takes both from kmalloc buckets of 512 to 8192
 * bytes, of which values may have 8,120 on every kernel. Tuples begin 128 bytes into the bucket, so that a
 * bucket of the table is three cache lines.
 *
 * All storage of a socket is charged to its optmem, of which socket options and control messages need some:
 * the loader says how far a table may grow (cfg_table_classes, cfg_table_maps) to leave 4 KB. A table that
 * cannot grow evicts (peers.h).
 *
 * Writers hold the lock of the socket (revnat.h). Readers without it copy a table under its own lock; that
 * tuples move between tables they see by revsk_peers.table_version, which is odd meanwhile.
 *
 * The verifier of 5.10 decides how this is written: what moves a tuple or chooses among tuples has no branch,
 * or every combination of branches would be walked; indexes are 64 bits wide, and masked with what the
 * verifier knows.
 */
#pragma once

#include "tuple.h"

#define TABLE_WAYS 4
/* Classes of size: a table of class c has 1 << c buckets; 0: the socket has no table. */
#define TABLE_CLASSES 5
/* Maps of the last class. */
#define TABLE_MAPS 16

/* What every table begins with. @reserved is for an index of services, and 0. */
#define TABLE_HEADER                                                                               \
	struct bpf_spin_lock lock;                                                                 \
	__u32 reserved[13]

#define TABLE_TUPLES(class) (TABLE_WAYS << (class))

/* The smallest; a pointer to one is a pointer to a table of any class. */
struct revsk_table_512_value {
	TABLE_HEADER;
	struct revsk_tuple tuples[TABLE_TUPLES(1)];
};

struct revsk_table_1k_value {
	TABLE_HEADER;
	struct revsk_tuple tuples[TABLE_TUPLES(2)];
	__u64 room[16]; /* as @reserved */
};

struct revsk_table_2k_value {
	TABLE_HEADER;
	struct revsk_tuple tuples[TABLE_TUPLES(3)];
	__u64 room[48];
};

struct revsk_table_4k_value {
	TABLE_HEADER;
	struct revsk_tuple tuples[TABLE_TUPLES(4)];
	__u64 room[112];
};

/* Two of these and the other storage of a socket leave 4 KB of the optmem_max of 20,480 bytes. */
struct revsk_table_8k_value {
	TABLE_HEADER;
	struct revsk_tuple tuples[TABLE_TUPLES(5)];
	__u64 room[195];
};

_Static_assert(sizeof(struct revsk_table_512_value) == 512 - 72, "fits the 512-byte bucket");
_Static_assert(sizeof(struct revsk_table_1k_value) == 1024 - 72, "fits the 1-KB bucket");
_Static_assert(sizeof(struct revsk_table_2k_value) == 2048 - 72, "fits the 2-KB bucket");
_Static_assert(sizeof(struct revsk_table_4k_value) == 4096 - 72, "fits the 4-KB bucket");
_Static_assert(sizeof(struct revsk_table_8k_value) == 7760, "see above");

#define TABLE_MAP(name, type_)                                                                     \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                             \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__type(key, __u32);                                                                \
		__type(value, struct type_);                                                       \
	} name SEC(".maps")

TABLE_MAP(revsk_tab_512, revsk_table_512_value);
TABLE_MAP(revsk_tab_1k, revsk_table_1k_value);
TABLE_MAP(revsk_tab_2k, revsk_table_2k_value);
TABLE_MAP(revsk_tab_4k, revsk_table_4k_value);
TABLE_MAP(revsk_tab_8k_0, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_1, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_2, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_3, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_4, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_5, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_6, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_7, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_8, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_9, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_10, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_11, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_12, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_13, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_14, revsk_table_8k_value);
TABLE_MAP(revsk_tab_8k_15, revsk_table_8k_value);

/* How far a table may grow: the last class, and how many maps of class TABLE_CLASSES. */
volatile const __u32 cfg_table_classes = TABLE_CLASSES;
volatile const __u32 cfg_table_maps = TABLE_MAPS;

/* The compiler knows nothing of @x from here on, and makes no branch of what is computed from it. */
#define opaque(x) asm volatile("" : "+r"(x))

/* A table and what its buckets are numbered with. */
struct table_ref {
	struct revsk_table_512_value *t; /* of any class; NULL: there is none */
	__u64 mask;
};

/*
 * The tables of a socket by number: those of the last class by the bits of the hash that they are for, then
 * the one of class c as TABLE_NUMBER(c).
 */
#define TABLE_NUMBER(class) (TABLE_MAPS - 1 + (class))

static __always_inline struct table_ref table_numbered(void *sk, __u32 number)
{
	struct table_ref r = { .mask = (1 << TABLE_CLASSES) - 1 };

	switch (number) {
#define TABLE_OF(n, map)                                                                           \
	case n:                                                                                    \
		r.t = bpf_sk_storage_get(&map, sk, NULL, 0);                                       \
		break
		TABLE_OF(0, revsk_tab_8k_0);
		TABLE_OF(1, revsk_tab_8k_1);
		TABLE_OF(2, revsk_tab_8k_2);
		TABLE_OF(3, revsk_tab_8k_3);
		TABLE_OF(4, revsk_tab_8k_4);
		TABLE_OF(5, revsk_tab_8k_5);
		TABLE_OF(6, revsk_tab_8k_6);
		TABLE_OF(7, revsk_tab_8k_7);
		TABLE_OF(8, revsk_tab_8k_8);
		TABLE_OF(9, revsk_tab_8k_9);
		TABLE_OF(10, revsk_tab_8k_10);
		TABLE_OF(11, revsk_tab_8k_11);
		TABLE_OF(12, revsk_tab_8k_12);
		TABLE_OF(13, revsk_tab_8k_13);
		TABLE_OF(14, revsk_tab_8k_14);
		TABLE_OF(15, revsk_tab_8k_15);
#undef TABLE_OF
#define TABLE_OF_CLASS(class, map)                                                                 \
	case TABLE_NUMBER(class):                                                                  \
		r.mask = (1 << (class)) - 1;                                                       \
		r.t = bpf_sk_storage_get(&map, sk, NULL, 0);                                       \
		break
		TABLE_OF_CLASS(1, revsk_tab_512);
		TABLE_OF_CLASS(2, revsk_tab_1k);
		TABLE_OF_CLASS(3, revsk_tab_2k);
		TABLE_OF_CLASS(4, revsk_tab_4k);
#undef TABLE_OF_CLASS
	}
	return r;
}

/*
 * Neighbours differ in few bits, v4-mapped ones in one byte of @last: folded before it is multiplied, that
 * reaches all bits of the result.
 */
static __always_inline __u32 hash_words(__u64 first, __u64 last, __u64 port)
{
	__u64 x = last ^ ((first ^ first >> 32) + port) * 0x9e3779b97f4a7c15;

	x ^= x >> 32;
	return x * 0xd6e8feb86659fd93 >> 32;
}

static __always_inline __u32 peer_hash(const struct endpoint *peer)
{
	return hash_words(peer->addr.halves[0], peer->addr.halves[1], peer->port);
}

static __always_inline __u32 tuple_hash(const struct revsk_tuple *t)
{
	return hash_words(t->peer.halves[0], t->peer.halves[1], t->peer_port);
}

/* The number whose low bits are the second bucket; the first one's are the hash's. */
static __always_inline __u64 second_bucket(__u64 hash)
{
	return hash ^ (hash >> 8 | 1);
}

/* The bits of the hash that choose among the maps of the last class. */
static __always_inline __u32 hash_map_bits(__u64 hash)
{
	return hash >> 16 & (TABLE_MAPS - 1);
}

static __always_inline bool table_has_map(const struct revsk_peers_value *p, __u32 number)
{
	return p->table_maps >> number & 1;
}

/* The number of the table for @hash: of the maps of the last class the one for most bits of it. */
static __always_inline __u32 table_number(const struct revsk_peers_value *p, __u32 hash)
{
	__u32 n = hash_map_bits(hash);

	if (p->table_class < TABLE_CLASSES)
		return TABLE_NUMBER(p->table_class);
	if (table_has_map(p, n))
		return n;
	if (table_has_map(p, n & 7))
		return n & 7;
	if (table_has_map(p, n & 3))
		return n & 3;
	return table_has_map(p, n & 1) ? n & 1 : 0;
}

static __always_inline struct table_ref table_get(void *sk, const struct revsk_peers_value *p,
						  __u32 hash)
{
	struct table_ref none = {};

	return p->table_class ? table_numbered(sk, table_number(p, hash)) : none;
}

static __always_inline struct revsk_tuple *table_tuple(struct table_ref r, __u64 bucket, __u64 way)
{
	/* Masked where it is used: Linux 5.10 forgets the bounds of what is kept on the stack. */
	opaque(bucket);
	return &r.t->tuples[(bucket & r.mask) * TABLE_WAYS + way];
}

/* The place that the low bits of @position number. */
static __always_inline struct revsk_tuple *table_at(struct table_ref r, __u64 position)
{
	opaque(position);
	return &r.t->tuples[position & (r.mask * TABLE_WAYS + TABLE_WAYS - 1)];
}

static __always_inline struct revsk_tuple *bucket_find(struct revsk_tuple *bucket,
						       const struct endpoint *peer)
{
	/* The address first: many peers have the same port. */
#pragma unroll
	for (int i = 0; i < TABLE_WAYS; i++)
		if (ip_equal(&bucket[i].peer, &peer->addr) && bucket[i].peer_port == peer->port)
			return &bucket[i];
	return NULL;
}

static __always_inline struct revsk_tuple *table_search(struct table_ref r, __u64 hash,
							const struct endpoint *peer)
{
	struct revsk_tuple *t = bucket_find(table_tuple(r, hash, 0), peer);

	return t ?: bucket_find(table_tuple(r, second_bucket(hash), 0), peer);
}

static __always_inline int position_in(struct table_ref r, __u64 hash, const struct endpoint *peer)
{
	__u64 bucket;

	if (!r.t)
		return -ENOENT;
#pragma unroll
	for (int side = 0; side < 2; side++) {
		bucket = (side ? second_bucket(hash) : hash) & r.mask;
#pragma unroll
		for (int i = 0; i < TABLE_WAYS; i++)
			if (tuple_has_peer(table_tuple(r, bucket, i), peer))
				return bucket * TABLE_WAYS + i;
	}
	return -ENOENT;
}

/*
 * A new tuple goes to the place with the smallest key of those in its two buckets. A free place has
 * a key below TABLE_TAKEN, the smaller the emptier the bucket is. If none is free, a tuple is
 * evicted: the one of the greatest age, of several the one that was sent to longest ago, and last
 * of all that of @actual, the peer that the kernel has the socket connected to.
 */
#define TABLE_TAKEN (1ULL << 50)
#define TABLE_ACTUAL (1ULL << 51)
#define TABLE_NONE (~0ULL) /* the socket has no table */

/* 1 if @x, of 16 bits, is not 0. */
static __always_inline __u64 is_set(__u64 x)
{
	return (x + 0xffff) >> 16;
}

/* A new tuple wants one of these places: the tuples in them age, up to 255. */
static __always_inline void tuples_age(struct revsk_tuple *tuples, int count)
{
#pragma unroll
	for (int i = 0; i < count; i++) {
		__u64 age = tuples[i].age, older = is_set(tuples[i].peer_port);

		opaque(age);
		opaque(older);
		tuples[i].age = age + (older & is_set(0xff - age));
	}
}

static __always_inline __u64 place_key(const struct revsk_tuple *t, const struct endpoint *actual,
				       __u64 used)
{
	__u64 taken = is_set(t->peer_port), differ, key;

	differ = (t->peer.halves[0] ^ actual->addr.halves[0]) |
		 (t->peer.halves[1] ^ actual->addr.halves[1]) | (t->peer_port ^ actual->port);
	opaque(differ);
	differ = (differ | -differ) >> 63;
	key = TABLE_TAKEN | (__u64)(t->age ^ 0xff) << 40 | (__u64)t->time << 8;
	key |= (differ ^ 1) * TABLE_ACTUAL;
	opaque(taken);
	return (key & -taken) | ((used << 8) & (taken - 1));
}

static __always_inline __u64 smaller(__u64 a, __u64 b)
{
	__s64 difference = a - b, is_less = difference >> 63;

	opaque(is_less);
	return b + (difference & is_less);
}

/*
 * The place for a new tuple in a bucket: its key, with the position in the low bits; or TABLE_NONE. @ages: the
 * tuples there age by that.
 */
static __always_inline __u64 bucket_choose(void *sk, __u32 number, __u64 bucket,
					   const struct endpoint *actual, bool ages)
{
	struct table_ref r = table_numbered(sk, number);
	__u64 best = TABLE_NONE >> 1, used = 0;
	struct revsk_tuple *t;

	if (!r.t)
		return TABLE_NONE;
	bucket &= r.mask;
	t = table_tuple(r, bucket, 0);
#pragma unroll
	for (int i = 0; i < TABLE_WAYS; i++)
		used += is_set(t[i].peer_port);
#pragma unroll
	for (int i = 0; i < TABLE_WAYS; i++)
		best = smaller(place_key(&t[i], actual, used) | (bucket * TABLE_WAYS + i), best);
	if (ages)
		tuples_age(t, TABLE_WAYS);
	return best;
}

/* Before tuples change places, and after. */
static __always_inline void table_changes(struct revsk_peers_value *p)
{
	bpf_spin_lock(&p->lock);
	p->table_version++;
	bpf_spin_unlock(&p->lock);
}

/*
 * Whether the tuple at @position can move to its other bucket. Returns a free position there in
 * bits 0 to 7, @position in bits 8 to 15, and from bit 16 on how many tuples that bucket has, so
 * that the smallest number is the best way; or TABLE_TAKEN and more if it is full.
 */
static __always_inline __u64 table_way_out(void *sk, __u32 number, __u64 position)
{
	struct table_ref r = table_numbered(sk, number);
	__u64 other, used = 0, way = 0, is_free, is_first;
	const struct revsk_tuple *others;

	if (!r.t)
		return TABLE_NONE;
	position &= r.mask * TABLE_WAYS + TABLE_WAYS - 1;
	other = tuple_hash(table_at(r, position));
	is_first = (other ^ position / TABLE_WAYS ^ 1) & 1;
	opaque(is_first);
	other = (other ^ ((other >> 8 | 1) & -is_first)) & r.mask;
	others = table_tuple(r, other, 0);
#pragma unroll
	for (int j = 0; j < TABLE_WAYS; j++) {
		is_free = is_set(others[j].peer_port) ^ 1;
		opaque(is_free);
		used += is_free ^ 1;
		way ^= (way ^ j) & -is_free;
	}
	return (used >> 2) * TABLE_TAKEN | used << 16 | position << 8 | (other * TABLE_WAYS + way);
}

/* Moves the tuple at @from to the free place @to. */
static __always_inline int table_move(void *sk, struct revsk_peers_value *p, __u32 number,
				      __u64 from, __u64 to)
{
	struct table_ref r = table_numbered(sk, number);
	const struct revsk_tuple none = {};
	struct revsk_tuple *tuple;

	if (!p || !r.t)
		return -ENOENT;
	tuple = table_at(r, from);
	table_changes(p);
	*table_at(r, to) = *tuple;
	*tuple = none;
	table_changes(p);
	return 0;
}

/* Tables grow by so many tuples at a time. */
#define TABLE_PART 4

/* Moves some tuples of a table of @buckets to one of twice as many, which is empty. */
static __always_inline void tuples_double(struct revsk_table_512_value *to,
					  const struct revsk_table_512_value *from, __u64 buckets,
					  __u64 first)
{
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < TABLE_PART; i++) {
		__u64 place = first + i, hash, is_second;
		const struct revsk_tuple *t;

		opaque(place);
		place &= buckets * TABLE_WAYS - 1;
		t = &from->tuples[place];
		hash = tuple_hash(t);
		/* Of the two buckets one is even: that tells which of them this is. */
		is_second = (hash ^ place / TABLE_WAYS) & 1;
		opaque(is_second);
		hash ^= (hash >> 8 | 1) & -is_second;
		place += (hash & buckets) * TABLE_WAYS;
		opaque(place);
		to->tuples[place & (2 * buckets * TABLE_WAYS - 1)] = *t;
	}
}

/* Copies some of the tuples of the table of a class to one of the next, and makes that first. */
static __always_inline int table_double_part(void *sk, __u32 class, __u32 first)
{
	struct revsk_table_512_value *from;
	void *to;

	switch (class) {
#define TABLE_DOUBLE(class, small, large)                                                          \
	case class:                                                                                \
		from = bpf_sk_storage_get(&small, sk, NULL, 0);                                    \
		to = bpf_sk_storage_get(&large, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);            \
		if (!from || !to)                                                                  \
			return -ENOMEM;                                                            \
		tuples_double(to, from, 1 << class, first);                                        \
		return 0
		TABLE_DOUBLE(1, revsk_tab_512, revsk_tab_1k);
		TABLE_DOUBLE(2, revsk_tab_1k, revsk_tab_2k);
		TABLE_DOUBLE(3, revsk_tab_2k, revsk_tab_4k);
		TABLE_DOUBLE(4, revsk_tab_4k, revsk_tab_8k_0);
#undef TABLE_DOUBLE
	}
	return -ENOMEM;
}

static __always_inline void table_delete(void *sk, __u32 class)
{
	switch (class) {
	case 1:
		bpf_sk_storage_delete(&revsk_tab_512, sk);
		break;
	case 2:
		bpf_sk_storage_delete(&revsk_tab_1k, sk);
		break;
	case 3:
		bpf_sk_storage_delete(&revsk_tab_2k, sk);
		break;
	case 4:
		bpf_sk_storage_delete(&revsk_tab_4k, sk);
		break;
	}
}

/*
 * Moves those of some tuples of which this bit of hash_map_bits is set to the same places of an empty table.
 */
static __always_inline void tuples_split(struct revsk_table_8k_value *to,
					 struct revsk_table_8k_value *from, __u64 bit, __u64 first)
{
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < TABLE_PART; i++) {
		__u64 place = first + i;
		struct revsk_tuple *t;
		__u64 *source, *target, leaves, word;

		opaque(place);
		place &= TABLE_TUPLES(TABLE_CLASSES) - 1;
		t = &from->tuples[place];
		source = (__u64 *)t;
		target = (__u64 *)&to->tuples[place];
		leaves = -((__u64)hash_map_bits(tuple_hash(t)) >> bit & 1);
		opaque(leaves);
#pragma unroll
		for (int w = 0; w < sizeof(*t) / sizeof(word); w++) {
			word = source[w];
			target[w] = word & leaves;
			source[w] = word & ~leaves;
		}
	}
}

/*
 * Moves some of the tuples of map @number that belong to the map which it is split with at @depth. A part,
 * and a step of its own: of the whole in one loop the verifier would walk each turn for each pair of maps.
 */
static __always_inline int table_split_part(void *sk, __u32 number, __u32 depth, __u32 first)
{
	struct revsk_table_8k_value *from = NULL, *to = NULL;

	switch (number | depth << 4) {
#define TABLE_SPLIT(n, d, with)                                                                    \
	case (n) | (d) << 4:                                                                       \
		from = bpf_sk_storage_get(&revsk_tab_8k_##n, sk, NULL, 0);                         \
		to = bpf_sk_storage_get(&revsk_tab_8k_##with, sk, NULL,                            \
					BPF_SK_STORAGE_GET_F_CREATE);                              \
		break
		TABLE_SPLIT(0, 0, 1);
		TABLE_SPLIT(0, 1, 2);
		TABLE_SPLIT(1, 1, 3);
		TABLE_SPLIT(0, 2, 4);
		TABLE_SPLIT(1, 2, 5);
		TABLE_SPLIT(2, 2, 6);
		TABLE_SPLIT(3, 2, 7);
		TABLE_SPLIT(0, 3, 8);
		TABLE_SPLIT(1, 3, 9);
		TABLE_SPLIT(2, 3, 10);
		TABLE_SPLIT(3, 3, 11);
		TABLE_SPLIT(4, 3, 12);
		TABLE_SPLIT(5, 3, 13);
		TABLE_SPLIT(6, 3, 14);
		TABLE_SPLIT(7, 3, 15);
#undef TABLE_SPLIT
	}
	if (!from || !to)
		return -ENOMEM;
	tuples_split(to, from, depth, first);
	return 0;
}

static __always_inline __u32 bits_set(__u32 x)
{
	x = (x & 0x5555) + (x >> 1 & 0x5555);
	x = (x & 0x3333) + (x >> 2 & 0x3333);
	x = (x & 0x0f0f) + (x >> 4 & 0x0f0f);
	return (x & 0xff) + (x >> 8);
}
