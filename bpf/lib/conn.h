/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a socket is connected to, and what a datagram socket was connected to before.
 *
 * Why the former connection is kept: datagrams from its peer may still be in the queue, and the kernel may
 * reject the new connection after the hook has run, in which case the former one is still the socket's. It
 * is a tuple of its own, because what the socket sends to that peer by way of another service since is
 * another thing.
 *
 * A socket has a former connection only while it has a revsk_conn, which says so: readers need not look for
 * what most sockets do not have. If the connection itself is gone, its value stays, without a tuple. Both
 * never have the same peer.
 */
#pragma once

#include "metrics.h"
#include "peers.h"
#include "sock_ref.h"
#include "tuple.h"

static __always_inline struct revsk_conn_value *conn_get(struct sock_ref *s)
{
	return bpf_sk_storage_get(&revsk_conn, s->sk, NULL, 0);
}

/*
 * Counts what has become of a tuple, if tuples of its socket are counted. Out of line, for the
 * stack on Linux 5.10.
 */
static __noinline void count_tuple(const struct revsk_tuple *t, enum revsk_metric metric)
{
	if (!(t->flags & REVSK_TUPLE_SUBFLOW))
		count(metric);
}

static __always_inline bool conn_is(const struct revsk_conn_value *conn,
				    const struct endpoint *peer)
{
	return conn && tuple_has_peer(&conn->tuple, peer);
}

static __always_inline struct revsk_former_value *former_get(struct sock_ref *s,
							     const struct revsk_conn_value *conn)
{
	if (!conn || !(conn->bits & REVSK_CONN_HAS_FORMER))
		return NULL;
	return bpf_sk_storage_get(&revsk_former, s->sk, NULL, 0);
}

static __always_inline bool former_is(const struct revsk_former_value *former,
				      const struct endpoint *peer)
{
	return former && tuple_has_peer(&former->tuple, peer);
}

/*
 * The tuple by which the socket is connected to its actual peer, @peer. That of the former connection if
 * the kernel has rejected the one that was to replace it.
 */
static __always_inline struct revsk_tuple *connection_find(struct sock_ref *s,
							   const struct endpoint *peer)
{
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former;

	if (conn_is(conn, peer))
		return &conn->tuple;
	former = former_get(s, conn);
	return former_is(former, peer) ? &former->tuple : NULL;
}

/*
 * Whether to believe the hash, and not the socket, about the service of @peer. Until the mark,
 * programs may have run that write the hash only. So its entry is newer if it differs from every
 * tuple that the socket has for that peer: there can be several, and the hash has one entry for
 * them. To be asked about tuples up to the mark; later ones were written to both.
 */
static __always_inline bool legacy_is_newer(struct sock_ref *s, const struct endpoint *peer)
{
	struct revsk_peers_value *p;
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former;
	struct revsk_tuple entry = {}, *sent;

	if (!current_mark() || !legacy_find(sock_cookie(s), peer, &entry))
		return false;
	if (conn_is(conn, peer) && tuple_same_frontend(&conn->tuple, &entry))
		return false;
	former = former_get(s, conn);
	if (former_is(former, peer) && tuple_same_frontend(&former->tuple, &entry))
		return false;
	p = peers_get(s);
	sent = p ? peers_find(s, p, peer) : NULL;
	return !sent || !tuple_same_frontend(sent, &entry);
}

/* legacy_is_newer, as a function of its own. */
static __always_inline bool ctx_legacy_is_newer(struct sock_ref *s, const struct endpoint *peer);

static __always_inline void conn_write(struct revsk_conn_value *conn, const struct revsk_tuple *t)
{
	bpf_spin_lock(&conn->lock);
	conn->tuple = *t;
	bpf_spin_unlock(&conn->lock);
}

static __always_inline __u32 ended_bit(const struct endpoint *peer)
{
	return (__u32)REVSK_CONN_ENDED << peer_hash(peer) % REVSK_CONN_ENDED_BITS;
}

/*
 * Mode dual: notes on the socket that the application has used @peer without a service, so that its
 * entry was deleted from the hash. A migrator that has read the entry before would otherwise take
 * it for one that the LRU has evicted, and move it to the socket. Nothing else depends on the note,
 * so no call is rejected if there is no memory for it.
 */
static __always_inline int conn_note_ended(struct sock_ref *s, const struct endpoint *peer)
{
	struct revsk_conn_value *conn;
	struct revsk_peers_value *p;

	conn = bpf_sk_storage_get(&revsk_conn, s->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		return -ENOMEM;
	conn->bits |= ended_bit(peer);
	p = peers_get(s);
	if (p)
		p->has_conn = true;
	return 0;
}

/* Whether that was noted. Peers share the bits: of 31 others, one looks as if it was noted, too. */
static __always_inline bool conn_has_ended(const struct revsk_conn_value *conn,
					   const struct endpoint *peer)
{
	return conn && conn->bits & ended_bit(peer);
}

/* The socket's peers, created empty if it has none; NULL if there is no memory for it. */
static __always_inline struct revsk_peers_value *peers_get_or_create(struct sock_ref *s,
								     struct revsk_peers_value *p)
{
	if (p)
		return p;
	p = bpf_sk_storage_get(&revsk_peers, s->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (p)
		p->has_conn = !!conn_get(s);
	return p;
}

/* Stores what the socket, which has no conn, is connected to. Returns 0 or -ENOMEM. */
static __always_inline int conn_create(struct sock_ref *s, struct revsk_conn_value *new,
				       struct revsk_peers_value *p)
{
	if (!bpf_sk_storage_get(&revsk_conn, s->sk, new, BPF_SK_STORAGE_GET_F_CREATE))
		return -ENOMEM;
	if (p)
		p->has_conn = true;
	count_tuple(&new->tuple, REVSK_STORED);
	return 0;
}

/* Drops the connection if it is to @peer. Returns whether it was. */
static __always_inline bool conn_drop(struct sock_ref *s, const struct endpoint *peer,
				      enum revsk_metric why)
{
	struct revsk_conn_value *conn = conn_get(s);
	const struct revsk_tuple none = {};

	if (!conn_is(conn, peer))
		return false;
	count_tuple(&conn->tuple, why);
	if (conn->bits)
		conn_write(conn, &none);
	else
		bpf_sk_storage_delete(&revsk_conn, s->sk);
	return true;
}

static __always_inline bool former_drop(struct sock_ref *s, const struct endpoint *peer,
					enum revsk_metric why)
{
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former = former_get(s, conn);

	if (!former_is(former, peer) || bpf_sk_storage_delete(&revsk_former, s->sk))
		return false;
	conn->bits &= ~REVSK_CONN_HAS_FORMER;
	if (!conn->tuple.peer_port && !conn->bits)
		bpf_sk_storage_delete(&revsk_conn, s->sk);
	count(why);
	return true;
}

/*
 * Marks what the socket has sent to @peer as what it may be connected by, too. Returns false if it
 * has sent nothing.
 */
static __always_inline bool peers_overtaken(struct sock_ref *s, struct revsk_peers_value *p,
					    const struct endpoint *peer)
{
	struct revsk_tuple *t = p ? peers_find(s, p, peer) : NULL;

	if (t)
		t->flags |= REVSK_TUPLE_OVERTAKEN;
	return t;
}

/*
 * Stores @t, what the socket was connected to, as the former connection, with this time. The one
 * that is stored there moves to the peers: datagrams from it may still be in the queue. It goes if
 * the socket has sent to its peer since, or is about to be connected to it: that is @next. Returns
 * 0, or -ENOMEM with nothing changed.
 */
static __always_inline int former_store(struct sock_ref *s, struct revsk_conn_value *conn,
					struct revsk_peers_value *p, const struct revsk_tuple *t,
					__u32 time, const struct endpoint *next)
{
	struct revsk_former_value *former = former_get(s, conn);
	struct endpoint peer;

	if (!former) {
		/* Empty: a value to begin with would be on the stack, which is small. */
		former =
			bpf_sk_storage_get(&revsk_former, s->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (!former)
			return -ENOMEM;
		conn->bits |= REVSK_CONN_HAS_FORMER;
	} else {
		peer = tuple_peer(&former->tuple);
		if (endpoint_equal(&peer, next) || peers_overtaken(s, p, &peer)) {
			count(REVSK_DROPPED_REPLACED);
		} else {
			p = peers_get_or_create(s, p);
			former->tuple.flags |= REVSK_TUPLE_OVERTAKEN;
			if (!p || peers_add(s, p, &former->tuple))
				return -ENOMEM;
		}
	}
	bpf_spin_lock(&former->lock);
	former->tuple = *t;
	former->tuple.time = time;
	bpf_spin_unlock(&former->lock);
	return 0;
}
