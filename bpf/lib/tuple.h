/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The reverse-NAT tuple and the maps that hold it on a socket.
 *
 * A storage value shares its kernel allocation with a 72-byte header, out of kmalloc buckets of
 * 96, 128, 192, 256 bytes: hence 56 bytes for what most sockets have (bucket 128), and 184 for
 * what multiplexing sockets have (bucket 256), which sets the number of slots.
 *
 * These layouts are pinned and outlive the programs: a changed layout gets a new map, whose name ends with
 * its version (revsk_conn_v2). A name without one is version 1.
 *
 * The header ends with a pointer in the cache line that the value begins in: what every datagram needs is
 * in the first 56 bytes.
 */
#pragma once

#include "endpoint.h"
#include "kernel.h"

enum {
	/* Brought from the hash by the migrator. */
	REVSK_TUPLE_MIGRATED = 1 << 0,
	/*
	 * Among the peers: of a connect that another has overtaken. The kernel may have rejected
	 * it; or threads connect the socket without waiting for each other, and it is the one that
	 * the kernel comes to last.
	 */
	REVSK_TUPLE_OVERTAKEN = 1 << 1,
	/*
	 * Of a TCP connection of an MPTCP socket, whose release no hook sees: it is not counted,
	 * and not in the hash, from which nobody would remove it. Termination finds it by the tuple.
	 */
	REVSK_TUPLE_SUBFLOW = 1 << 2,
};

/* A tuple without a peer port is none: nothing can be sent to port 0, and no tuple is stored for it. */
struct revsk_tuple {
	union ip_addr peer; /* the backend, as the kernel sees it */
	union ip_addr service; /* the address that the application used */
	__be16 peer_port;
	__be16 service_port;
	__be16 rev_nat_index;
	__u8 flags; /* REVSK_TUPLE_* */
	__u8 age; /* of a peer: how many wanted its place since it was last used, see table.h */
	__u32 backend_id; /* 0: unknown */
	/*
	 * CLOCK_MONOTONIC in units of 2^30 ns (1.07 s), 0: unknown. Of a connection when it was made, of a
	 * former one when it was replaced, of what was sent when the last datagram was.
	 */
	__u32 time;
};

_Static_assert(sizeof(struct revsk_tuple) == 48, "revsk_tuple is 48 bytes");

enum {
	/* The socket has a revsk_former. */
	REVSK_CONN_HAS_FORMER = 1 << 0,
	/*
	 * From this bit on, for peers by their hash: in mode dual the application has turned to the
	 * peer itself, and its entry was removed from the hash.
	 */
	REVSK_CONN_ENDED = 1 << 1,
};

#define REVSK_CONN_ENDED_BITS 31

/* Value of revsk_conn: what the socket is connected to. May have no tuple, and only bits. */
struct revsk_conn_value {
	struct revsk_tuple tuple;
	struct bpf_spin_lock lock; /* see revnat.h */
	__u32 bits; /* REVSK_CONN_* */
};

/* Value of revsk_former: what a datagram socket was connected to before. */
struct revsk_former_value {
	struct revsk_tuple tuple;
	struct bpf_spin_lock lock;
	__u32 reserved;
};

_Static_assert(sizeof(struct revsk_conn_value) == 56, "fits the 128-byte bucket");
_Static_assert(sizeof(struct revsk_former_value) == 56, "fits the 128-byte bucket");

#define REVSK_SLOTS 3

/* Value of revsk_peers: whom a datagram socket has sent to. A slot without a port is free. */
struct revsk_peers_value {
	struct bpf_spin_lock lock; /* see revnat.h */
	__u16 table_maps; /* see table.h, as of table_ */
	__u8 has_conn; /* the socket has a revsk_conn, or had one: see revnat.h */
	__u8 slots_tried; /* slots that are in use, or were: the others are not looked at */
	struct revsk_tuple slots[REVSK_SLOTS];
	__u32 table_version; /* odd while tuples move */
	__u16 table_count; /* tuples in tables */
	__u8 table_class; /* 0: no table */
	__u8 reserved[25]; /* for an index of services, and 0 */
};

_Static_assert(sizeof(struct revsk_peers_value) == 184, "fits the 256-byte bucket");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct revsk_conn_value);
} revsk_conn SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct revsk_former_value);
} revsk_former SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct revsk_peers_value);
} revsk_peers SEC(".maps");

/* Of a time of CLOCK_MONOTONIC, in ns. */
static __always_inline __u32 tuple_time(__u64 ns)
{
	return ns >> 30;
}

static __always_inline bool tuple_has_peer(const struct revsk_tuple *t, const struct endpoint *peer)
{
	return t->peer_port == peer->port && ip_equal(&t->peer, &peer->addr);
}

static __always_inline struct endpoint tuple_peer(const struct revsk_tuple *t)
{
	struct endpoint ep = { .addr = t->peer, .port = t->peer_port };

	return ep;
}

static __always_inline struct endpoint tuple_service(const struct revsk_tuple *t)
{
	struct endpoint ep = { .addr = t->service, .port = t->service_port };

	return ep;
}

/*
 * The tuple is true at this time, too. An aligned word, so it needs no lock, and is written about once a
 * second at most.
 */
static __always_inline void tuple_touch(struct revsk_tuple *t, __u32 time)
{
	if (t->time != time)
		t->time = time;
}

/* The tuple was used by a send or a read. */
static __always_inline void tuple_used(struct revsk_tuple *t)
{
	if (t->age)
		t->age = 0;
}

/* Both name the same service, as far as the hash knows it. */
static __always_inline bool tuple_same_frontend(const struct revsk_tuple *a,
						const struct revsk_tuple *b)
{
	return a->service_port == b->service_port && a->rev_nat_index == b->rev_nat_index &&
	       ip_equal(&a->service, &b->service);
}

/* Both say the same of the same peer; their times may differ. */
static __always_inline bool tuple_same_service(const struct revsk_tuple *a,
					       const struct revsk_tuple *b)
{
	return a->backend_id == b->backend_id && tuple_same_frontend(a, b);
}
