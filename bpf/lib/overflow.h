/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The overflow chain: tuples of a socket with more peers than slots.
 *
 * Each tuple is an entry of one hash for all sockets, found in O(1) by cookie and peer. The entries
 * of one socket form a doubly linked list, so that the release hook reaches every one without
 * knowing an address and a tuple in the middle can leave. The links are the peers, which together
 * with the cookie are the keys of the neighbours; a port of 0 ends the list.
 *
 * Writes to a chain happen under the lock of its socket, as revnat.h explains. A tuple is never
 * changed in place: an update replaces the hash entry, so whoever walks the map without the lock
 * sees the old tuple or the new one. Links are changed in place, and mean nothing to others.
 */
#pragma once

#include "metrics.h"
#include "sock_ref.h"
#include "tuple.h"

struct revsk_overflow_key {
	__u64 cookie;
	union ip_addr peer;
	__be16 peer_port;
	__u8 pad[6];
};

struct revsk_overflow_value {
	struct revsk_tuple tuple;
	union ip_addr next;
	union ip_addr prev;
	__be16 next_port;
	__be16 prev_port;
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_overflow_key) == 32, "revsk_overflow_key is 32 bytes");
_Static_assert(sizeof(struct revsk_overflow_value) == 88, "revsk_overflow_value is 88 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct revsk_overflow_key);
	__type(value, struct revsk_overflow_value);
} revsk_overflow SEC(".maps");

static __always_inline struct revsk_overflow_key overflow_key(__u64 cookie, union ip_addr peer,
							      __be16 port)
{
	struct revsk_overflow_key key = {
		.cookie = cookie,
		.peer = peer,
		.peer_port = port,
	};

	return key;
}

static __always_inline struct revsk_overflow_value *overflow_entry(__u64 cookie, union ip_addr peer,
								   __be16 port)
{
	struct revsk_overflow_key key = overflow_key(cookie, peer, port);

	return bpf_map_lookup_elem(&revsk_overflow, &key);
}

static __always_inline struct revsk_overflow_value *overflow_find(const struct revsk_peers_value *p,
								  const struct endpoint *peer)
{
	if (!p->head_port)
		return NULL;
	return overflow_entry(p->cookie, peer->addr, peer->port);
}

/* Puts @t at the head of the chain. Returns 0, or -ENOMEM with nothing changed. */
static __noinline int overflow_push(struct revsk_peers_value *p, __u64 cookie,
				    const struct revsk_tuple *t)
{
	struct revsk_overflow_key key;
	struct revsk_overflow_value value = {};
	struct revsk_overflow_value *next;

	if (!p || !t)
		return -EINVAL;
	key = overflow_key(cookie, t->peer, t->peer_port);
	value.tuple = *t;
	value.next = p->head;
	value.next_port = p->head_port;
	/* Before the entry exists: the sweep takes an entry whose cookie no socket has for a leak. */
	p->cookie = cookie;
	if (bpf_map_update_elem(&revsk_overflow, &key, &value, BPF_ANY))
		return -ENOMEM;
	if (p->head_port) {
		/* The same key again: the stack of a call chain is 512 bytes. */
		key.peer = p->head;
		key.peer_port = p->head_port;
		next = bpf_map_lookup_elem(&revsk_overflow, &key);
		if (next) {
			next->prev = t->peer;
			next->prev_port = t->peer_port;
		}
	}
	p->head = t->peer;
	p->head_port = t->peer_port;
	p->chain_len++;
	count(REVSK_OVERFLOW_STORED);
	return 0;
}

/* Replaces the tuple for a peer that the chain has. Returns 0, or -ENOMEM with nothing changed. */
static __noinline int overflow_replace(struct revsk_peers_value *p, const struct revsk_tuple *t)
{
	struct revsk_overflow_value *old;
	struct revsk_overflow_value value;
	struct revsk_overflow_key key;

	if (!p || !t)
		return -EINVAL;
	key = overflow_key(p->cookie, t->peer, t->peer_port);
	old = bpf_map_lookup_elem(&revsk_overflow, &key);
	if (!old)
		return -EINVAL;
	value = *old;
	value.tuple = *t;
	return bpf_map_update_elem(&revsk_overflow, &key, &value, BPF_EXIST) ? -ENOMEM : 0;
}

/* Takes the tuple for a peer out of the chain; 0 if the chain has none. */
static __noinline int overflow_remove(struct revsk_peers_value *p, const struct endpoint *peer)
{
	struct revsk_overflow_value *value, *prev, *next;
	struct revsk_overflow_key key;

	if (!p || !peer)
		return 0;
	key = overflow_key(p->cookie, peer->addr, peer->port);
	value = bpf_map_lookup_elem(&revsk_overflow, &key);
	if (!value)
		return 0;
	if (value->prev_port) {
		prev = overflow_entry(p->cookie, value->prev, value->prev_port);
		if (prev) {
			prev->next = value->next;
			prev->next_port = value->next_port;
		}
	} else {
		p->head = value->next;
		p->head_port = value->next_port;
	}
	if (value->next_port) {
		next = overflow_entry(p->cookie, value->next, value->next_port);
		if (next) {
			next->prev = value->prev;
			next->prev_port = value->prev_port;
		}
	}
	bpf_map_delete_elem(&revsk_overflow, &key);
	p->chain_len--;
	count(REVSK_OVERFLOW_REMOVED);
	return 1;
}
