/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The set of peers that a datagram socket has sent to: a few slots on the socket, the rest in the
 * overflow chain. A peer is in one place only, and there is a chain only while the slots are full.
 *
 * Which tuples have the slots: the first to come, until every EXCHANGE_INTERVAL-th send that finds
 * its tuple in the chain exchanges it with the tuple of the next slot in turn. A peer that gets most
 * of the sends is in a slot soon and comes back soon after it was exchanged; a socket that talks to
 * all its peers alike pays for an exchange on few of its sends.
 */
#pragma once

#include "overflow.h"

#define EXCHANGE_INTERVAL 16

static __always_inline struct revsk_peers_value *peers_get(struct sock_ref *s)
{
	return bpf_sk_storage_get(&revsk_peers, s->sk, NULL, 0);
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

static __always_inline struct revsk_tuple *peers_find(struct revsk_peers_value *p,
						      const struct endpoint *peer)
{
	struct revsk_tuple *t = slot_find(p, peer);
	struct revsk_overflow_value *v;

	if (t)
		return t;
	v = overflow_find(p, peer);
	return v ? &v->tuple : NULL;
}

static __always_inline void slot_write(struct revsk_peers_value *p, struct revsk_tuple *slot,
				       const struct revsk_tuple *t)
{
	bpf_spin_lock(&p->lock);
	*slot = *t;
	bpf_spin_unlock(&p->lock);
}

/* The tuple of the slot in turn goes to the chain, @t from the chain takes its place. */
static __noinline int peers_exchange(struct revsk_peers_value *p, const struct revsk_tuple *t)
{
	struct endpoint peer;
	__u32 i;

	if (!p || !t)
		return -EINVAL;
	/* Compared rather than taken modulo: the verifier learns bounds from comparisons only. */
	i = p->victim;
	if (i >= REVSK_SLOTS)
		i = 0;
	/* In this order a full map changes nothing, and no reader misses either tuple. */
	if (overflow_push(p, p->cookie, &p->slots[i]))
		return -ENOMEM;
	slot_write(p, &p->slots[i], t);
	peer = tuple_peer(t);
	overflow_remove(p, &peer);
	p->victim = i + 1;
	return 0;
}

/* A send has found its tuple, @t, in the chain. */
static __always_inline void peers_chain_hit(struct revsk_peers_value *p,
					    const struct revsk_tuple *t)
{
	if (++p->chain_hits < EXCHANGE_INTERVAL)
		return;
	p->chain_hits = 0;
	peers_exchange(p, t);
}

/* Adds a tuple for a peer that the socket does not have. Returns 0, or -ENOMEM. */
static __noinline int peers_add(struct revsk_peers_value *p, __u64 cookie,
				const struct revsk_tuple *t)
{
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
	return overflow_push(p, cookie, t);
}

/* Takes the head of the chain into the slot that has become free. */
static __noinline int peers_refill(struct revsk_peers_value *p, __u32 slot)
{
	struct revsk_overflow_value *v;
	struct endpoint head;

	if (!p || slot >= REVSK_SLOTS)
		return -EINVAL;
	head.addr = p->head;
	head.port = p->head_port;
	v = overflow_entry(p->cookie, p->head, p->head_port);
	if (!v)
		return -EINVAL;
	slot_write(p, &p->slots[slot], &v->tuple);
	return overflow_remove(p, &head);
}

/* Removes the tuple for @peer; false if there is none. */
static __always_inline bool peers_remove(struct revsk_peers_value *p, const struct endpoint *peer)
{
	const struct revsk_tuple none = {};

#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++) {
		if (tuple_has_peer(&p->slots[i], peer)) {
			if (!p->chain_len || peers_refill(p, i) < 0)
				slot_write(p, &p->slots[i], &none);
			return true;
		}
	}
	return p->chain_len && overflow_remove(p, peer);
}
