/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a socket remembers: the rules of each hook. They alone decide which tuples a socket holds;
 * tuple.h, conn.h, peers.h, table.h and legacy.h say how.
 *
 * Locking. connect, sendmsg, recvmsg and getpeername hooks run under the lock of their socket
 * (lock_sock) on every kernel since 5.10: TCP connects hold it already, the UDP and getpeername
 * hooks take it around the program. So hooks of one socket never run side by side, and read their
 * own state without further locks. (A getpeername before 6.2 reads the peer's address before it
 * takes the lock; the comparison with it makes up for that.) sock_release does not hold the lock,
 * but runs when the last file descriptor is gone, so no other hook of the socket can run.
 *
 * The migrator adds tuples under the same lock: its programs run in iter/tcp (which takes it since
 * 5.15) and iter/udp (since 6.5), or as a setsockopt hook on any kernel (bpf/iter/fill.h). Other
 * iterators, and user space, do not hold that lock and only read. So that they never read half a
 * tuple, hooks change a tuple under the value's own bpf_spin_lock, and those readers copy it under
 * that lock (BPF_F_LOCK from user space). Creating and deleting a storage is atomic by itself (RCU).
 * Tuples that move between tables are noticed by a version (table.h).
 *
 * A socket that has peers and was never connected by way of a service is not asked for revsk_conn again
 * with every datagram of a stranger: whoever creates one of the two storages, under the lock of the
 * socket, notes in revsk_peers that both are there (has_conn).
 */
#pragma once

#include "conn.h"
#include "current.h"
#include "legacy.h"
#include "metrics.h"
#include "peers.h"

/* The socket's tuple for @peer is no longer true. Returns whether there was one. */
static __always_inline bool peers_drop(struct sock_ref *s, const struct endpoint *peer,
				       enum revsk_metric why)
{
	struct revsk_peers_value *p = peers_get(s);

	if (!p || !peers_remove(s, p, peer))
		return false;
	count(why);
	return true;
}

/* The same of what only a datagram socket has: a former connection, and what it has sent to. */
static __always_inline bool datagram_drop(struct sock_ref *s, const struct endpoint *peer,
					  enum revsk_metric why)
{
	bool dropped = former_drop(s, peer, why);

	return peers_drop(s, peer, why) || dropped;
}

/* The part of legacy_drop_direct that is about the hash. */
static __always_inline int legacy_end(struct sock_ref *s, const struct endpoint *dst,
				      bool was_in_storage)
{
	bool was_in_hash = legacy_delete(sock_cookie(s), dst);

	if (current_mode() == REVSK_MODE_DUAL && (was_in_hash || was_in_storage))
		return conn_note_ended(s, dst);
	return 0;
}

/* legacy_end, as a function of its own. */
static __always_inline void ctx_legacy_end(struct sock_ref *s, const struct endpoint *dst,
					   bool was_in_storage);

/*
 * What storage has dropped leaves the hash; in mode dual also what only the hash knew. In mode
 * mirror there is no such thing, and the hash is not asked.
 */
static __always_inline void legacy_drop_direct(struct sock_ref *s, const struct endpoint *dst,
					       bool was_in_storage, enum revsk_mode mode)
{
	if (mode == REVSK_MODE_DUAL || (mode == REVSK_MODE_MIRROR && was_in_storage))
		ctx_legacy_end(s, dst, was_in_storage);
}

/*
 * The time of a tuple that is true now. Later than the mark, which may be in the same unit of time: else it
 * would pass for older than that.
 */
static __always_inline __u32 time_now(void)
{
	__u32 now = ctx_time(), mark = current_mark();

	return now > mark ? now : mark + 1;
}

/*
 * The time of @old as a former connection: now, unless it is from up to the mark and not confirmed.
 * Then it stays so.
 */
static __always_inline __u32 time_of_former(const struct revsk_tuple *old)
{
	return old->time > current_mark() ? time_now() : old->time;
}

/*
 * Writes to the hash the connection to @peer, or the former one to it; without either, @peer has no
 * entry any more.
 */
static __noinline int legacy_restore_connection(struct sock_ref *s, const struct endpoint *peer)
{
	struct revsk_tuple *t;

	if (!peer)
		return -EINVAL;
	t = connection_find(s, peer);
	if (t)
		return hash_store(s, t, current_mode());
	legacy_delete(sock_cookie(s), peer);
	return 0;
}

/* The former connection is the one that the kernel has the socket in. */
static __always_inline bool former_is_actual(struct sock_ref *s,
					     const struct revsk_former_value *former)
{
	const struct endpoint actual = sock_peer(s->sk);

	return former_is(former, &actual);
}

/*
 * A datagram socket connects to @next: its connection becomes the former one. But if the kernel has
 * the socket connected to the peer of the former one, that stays. The kernel has then rejected the
 * connection, or another thread was faster and the kernel has not come to it yet: so it is kept
 * among the peers, and marked.
 */
static __always_inline int conn_retire(struct sock_ref *s, const struct endpoint *next)
{
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former;
	struct revsk_peers_value *p;
	struct endpoint peer;

	if (!conn)
		return -ENOENT;
	p = peers_get(s);
	former = former_get(s, conn);
	if (former && former_is_actual(s, former)) {
		peer = tuple_peer(&conn->tuple);
		if (peers_overtaken(s, p, &peer)) {
			/* That send was later than the connect, which is what the hash says, too. */
			count(REVSK_DROPPED_REPLACED);
			return 0;
		}
		p = peers_get_or_create(s, p);
		conn->tuple.flags |= REVSK_TUPLE_OVERTAKEN;
		return p ? peers_add(s, p, &conn->tuple) : -ENOMEM;
	}
	return former_store(s, conn, p, &conn->tuple, time_of_former(&conn->tuple), next);
}

/* legacy_delete and conn_retire, as functions of their own. */
static __always_inline int ctx_legacy_delete(struct sock_ref *s, const struct endpoint *peer);
static __always_inline int ctx_conn_retire(struct sock_ref *s, const struct endpoint *next);

static __always_inline int conn_replace(struct sock_ref *s, struct revsk_conn_value *conn,
					const struct revsk_tuple *t, struct revsk_peers_value *p,
					bool datagram, enum revsk_mode mode)
{
	const struct endpoint peer = tuple_peer(t);
	const struct endpoint old_peer = tuple_peer(&conn->tuple);
	int err = 0;

	if (endpoint_equal(&old_peer, &peer)) {
		if (tuple_same_service(&conn->tuple, t)) {
			/* Confirmed, if it is from up to the mark. */
			if (conn->tuple.time <= current_mark())
				tuple_touch(&conn->tuple, t->time);
			return 0;
		}
		count_tuple(t, REVSK_UPDATED);
	} else if (!old_peer.port) {
		count_tuple(t, REVSK_STORED);
	} else if (datagram) {
		err = ctx_conn_retire(s, &peer);
		if (err)
			return err;
		count(REVSK_STORED);
	} else {
		if (mode_has_hash(mode))
			ctx_legacy_delete(s, &old_peer);
		count_tuple(&conn->tuple, REVSK_DROPPED_REPLACED);
		count_tuple(t, REVSK_STORED);
	}
	conn_write(conn, t);
	if (datagram)
		former_drop(s, &peer, REVSK_DROPPED_REPLACED);
	return 0;
}

static __always_inline int conn_store(struct sock_ref *s, struct revsk_conn_value *new,
				      struct revsk_peers_value *p, bool datagram,
				      enum revsk_mode mode)
{
	struct revsk_conn_value *conn = conn_get(s);

	new->tuple.time = time_now();
	if (!conn)
		return conn_create(s, new, p);
	return conn_replace(s, conn, &new->tuple, p, datagram, mode);
}

/*
 * Whether a connection belongs in the hash. That of an MPTCP socket would leak: as with the
 * reference, in mode legacy.
 */
static __always_inline bool connection_is_hashed(const struct revsk_tuple *t, enum revsk_mode mode)
{
	if (t->flags & REVSK_TUPLE_SUBFLOW)
		return mode == REVSK_MODE_LEGACY;
	return mode_has_hash(mode);
}

/* connect to a service: overwrite conn; drop a peers tuple with the same peer. 0 or -ENOMEM. */
static __always_inline int revnat_connect(struct sock_ref *s, struct revsk_conn_value *new,
					  bool datagram)
{
	const struct endpoint peer = tuple_peer(&new->tuple);
	enum revsk_mode mode = current_mode();
	struct revsk_peers_value *p = NULL;
	int err = 0;

	if (ctx_is_rejected())
		return 0;
	/* Storage first: it is what can fail, and a rejected call leaves nothing in the hash. */
	if (mode_has_storage(mode)) {
		/* Asked for before: on a socket without any storage this costs nothing. */
		if (datagram)
			p = peers_get(s);
		err = conn_store(s, new, p, datagram, mode);
		if (!err && p && peers_remove(s, p, &peer))
			count(REVSK_DROPPED_REPLACED);
	} else {
		/* What storage says of this peer is from before the mode was switched. */
		conn_drop(s, &peer, REVSK_DROPPED_REPLACED);
		if (datagram)
			datagram_drop(s, &peer, REVSK_DROPPED_REPLACED);
	}
	if (!err && connection_is_hashed(&new->tuple, mode))
		err = hash_store(s, &new->tuple, mode);
	return err;
}

/*
 * Whether a call to no service can end anything. Most sockets remember nothing, and the hash is only in mode
 * dual asked beside that. @p is what peers_get says.
 */
static __always_inline bool revnat_has_any(struct sock_ref *s, struct revsk_peers_value *p)
{
	return p || conn_get(s) || current_mode() == REVSK_MODE_DUAL;
}

/* connect to no service: drop conn if its peer is the very address now connected to. */
static __always_inline void revnat_connect_direct(struct sock_ref *s, const struct endpoint *dst,
						  bool datagram)
{
	bool dropped;

	if (!dst->port || !revnat_has_any(s, datagram ? peers_get(s) : NULL) || ctx_is_rejected())
		return;
	dropped = conn_drop(s, dst, REVSK_DROPPED_DIRECT);
	if (datagram && datagram_drop(s, dst, REVSK_DROPPED_DIRECT))
		dropped = true;
	legacy_drop_direct(s, dst, dropped, current_mode());
}

static __always_inline int peers_store(struct sock_ref *s, struct revsk_peers_value *p,
				       struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);
	struct revsk_tuple *old;
	int err;

	if (!p && ctx_is_rejected())
		return 0;
	p = peers_get_or_create(s, p);
	if (!p)
		return -ENOMEM;
	t->time = time_now();
	old = peers_find(s, p, &peer);
	if (old && tuple_same_service(old, t)) {
		/* Most sends have nothing to note. */
		if ((old->time != t->time || old->age) && !ctx_is_rejected()) {
			tuple_touch(old, t->time);
			tuple_used(old);
		}
		return 0;
	}
	if (ctx_is_rejected())
		return 0;
	if (old) {
		t->flags |= old->flags & REVSK_TUPLE_OVERTAKEN;
		peers_replace(s, p, t);
		count(REVSK_UPDATED);
		return 0;
	}
	err = peers_add(s, p, t);
	if (!err)
		count(REVSK_STORED);
	return err;
}

/*
 * sendmsg to a service: upsert the tuple for that peer, the latest service wins. 0 or -ENOMEM. @p is
 * what peers_get says, asked for before the service is: then the processor need not wait for one
 * after the other.
 */
static __always_inline int revnat_sendmsg(struct sock_ref *s, struct revsk_peers_value *p,
					  struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);
	enum revsk_mode mode = current_mode();
	int err = 0;

	if (mode_has_storage(mode))
		err = peers_store(s, p, t);
	else if (p && !ctx_is_rejected() && peers_remove(s, p, &peer))
		count(REVSK_DROPPED_REPLACED);
	if (!err && mode_has_hash(mode) && !ctx_is_rejected())
		err = hash_store(s, t, mode);
	return err;
}

/*
 * sendmsg to no service: drop what the socket remembers of the very address now sent to. A connection
 * to that address is not a send's to end: then only what another send has left goes. (For a v4-mapped
 * socket the kernel runs the hook for sends without an address, too, with that of the peer; which it reads
 * without the lock, so that a connect by another thread in between makes the two the same. See
 * docs/design.md.)
 */
static __always_inline void revnat_sendmsg_direct(struct sock_ref *s, struct revsk_peers_value *p,
						  const struct endpoint *dst)
{
	enum revsk_mode mode = current_mode();
	const struct endpoint peer = sock_peer(s->sk);
	bool dropped;

	if (!dst->port || !revnat_has_any(s, p) || ctx_is_rejected())
		return;
	dropped = peers_drop(s, dst, REVSK_DROPPED_DIRECT);
	if (endpoint_equal(&peer, dst)) {
		if (dropped && mode_has_both(mode))
			legacy_restore_connection(s, dst);
		return;
	}
	if (former_drop(s, dst, REVSK_DROPPED_DIRECT))
		dropped = true;
	if (conn_drop(s, dst, REVSK_DROPPED_DIRECT))
		dropped = true;
	legacy_drop_direct(s, dst, dropped, mode);
}

/*
 * Whether the service that @t names still stands for its peer. Out of the way of the reads of most tuples,
 * which need not know.
 */
static __always_inline bool ctx_tuple_stands(struct sock_ref *s, const struct revsk_tuple *t,
					     __u8 protocol);

/*
 * Which service the application connected to is a fact, whatever becomes of the service. Only what may have
 * changed while other hooks ran, or none, is worth a look.
 */
static __always_inline bool connection_answers(struct sock_ref *s, const struct revsk_tuple *t,
					       __u8 protocol)
{
	return t->time > current_mark() || ctx_tuple_stands(s, t, protocol);
}

/* How long an answer to a datagram can be expected, in the unit of a tuple's time: 5 minutes. */
#define ANSWER_TIME 280

/*
 * What a socket has sent to is true as long as an answer can be expected. Later the peer's address may be
 * another's, and what was sent is not to hide the connection for ever.
 */
static __always_inline bool sent_answers(struct sock_ref *s, const struct revsk_tuple *t,
					 __u8 protocol)
{
	/* Signed: time_now() is a little ahead of the clock just after the mark. */
	bool expected = (__s32)(ctx_time() - t->time) <= ANSWER_TIME;

	return (expected && t->time > current_mark()) || ctx_tuple_stands(s, t, protocol);
}

/*
 * The service by which the hash knows @peer; false if it knows none. Its entries may be leftovers of former
 * connections, so they are judged as the reference does it. But only mode legacy deletes them: a
 * service that comes back finds its sockets.
 */
static __always_inline bool legacy_service(struct sock_ref *s, const struct endpoint *peer,
					   __u8 protocol, enum revsk_mode mode,
					   struct endpoint *service)
{
	struct revsk_tuple t = {};

	if (!legacy_find(sock_cookie(s), peer, &t))
		return false;
	*service = tuple_service(&t);
	if (ctx_tuple_stands(s, &t, protocol))
		return true;
	if (mode == REVSK_MODE_LEGACY)
		legacy_delete(sock_cookie(s), peer);
	return false;
}

/*
 * Of what a socket was connected to: it is its connection after all, as the kernel has rejected the
 * connect after it, or has come to it last.
 */
static __always_inline bool is_still_connection(struct sock_ref *s, const struct revsk_tuple *t,
						const struct endpoint *peer)
{
	const struct endpoint actual = sock_peer(s->sk);

	return t->time > current_mark() && endpoint_equal(&actual, peer);
}

/*
 * The service by which storage answers for a datagram from @src; false if it does not. A tuple that does not
 * answer hides none that does, and stays: its service may come back.
 */
static __always_inline bool source_find(struct sock_ref *s, const struct endpoint *src,
					__u8 protocol, struct endpoint *service, __u32 *time)
{
	struct revsk_peers_value *p = peers_get(s);
	struct revsk_tuple *t = p ? peers_find(s, p, src) : NULL;
	struct revsk_former_value *former;
	struct revsk_conn_value *conn;
	struct revsk_tuple sent;

	if (t) {
		tuple_used(t);
		/* A copy: the verifier would walk what follows once for each place that @t may be in. */
		sent = *t;
		*service = tuple_service(&sent);
		*time = sent.time;
		if (sent_answers(s, &sent, protocol) ||
		    ((sent.flags & REVSK_TUPLE_OVERTAKEN) && is_still_connection(s, &sent, src)))
			return true;
	}
	conn = !p || p->has_conn ? conn_get(s) : NULL;
	if (conn_is(conn, src)) {
		*service = tuple_service(&conn->tuple);
		*time = conn->tuple.time;
		if (connection_answers(s, &conn->tuple, protocol))
			return true;
	}
	former = former_get(s, conn);
	if (!former_is(former, src))
		return false;
	*service = tuple_service(&former->tuple);
	*time = former->tuple.time;
	return sent_answers(s, &former->tuple, protocol) ||
	       is_still_connection(s, &former->tuple, src);
}

/* recvmsg: the service under which the socket knows @src; false if it knows none. */
static __always_inline bool revnat_source(struct sock_ref *s, const struct endpoint *src,
					  __u8 protocol, struct endpoint *service)
{
	enum revsk_mode mode = current_mode();
	__u32 time;

	if (!src->port)
		return false;
	if (mode_has_storage(mode) && source_find(s, src, protocol, service, &time) &&
	    !(mode_has_hash(mode) && time <= current_mark() && ctx_legacy_is_newer(s, src)))
		return true;
	return mode_has_hash(mode) && legacy_service(s, src, protocol, mode, service);
}

/*
 * The service of a connect that was overtaken, but is the one by which the socket is connected;
 * false if there is none. @time is that of the tuple for @peer, if there is one.
 */
static __noinline bool overtaken_service(struct sock_ref *s, const struct endpoint *peer,
					 __u32 protocol, struct endpoint *service, __u32 *time)
{
	struct revsk_peers_value *p = peers_get(s);
	struct revsk_tuple *t, copy;

	if (!p || !peer || !service || !time)
		return false;
	t = peers_find(s, p, peer);
	if (!t)
		return false;
	copy = *t; /* as in source_find */
	*service = tuple_service(&copy);
	*time = copy.time;
	return (copy.flags & REVSK_TUPLE_OVERTAKEN) && connection_answers(s, &copy, protocol);
}

/*
 * getpeername: the service that the socket is connected to by way of its actual peer, @peer; false
 * if it is connected to none. A tuple that only a send has left says nothing about that.
 */
static __always_inline bool revnat_peername(struct sock_ref *s, const struct endpoint *peer,
					    __u8 protocol, struct endpoint *service)
{
	enum revsk_mode mode = current_mode();
	struct revsk_peers_value *p;
	struct revsk_tuple *t;
	bool answers;
	__u32 time = 0;

	if (!peer->port)
		return false;
	if (mode_has_storage(mode)) {
		t = connection_find(s, peer);
		if (t) {
			*service = tuple_service(t);
			time = t->time;
			answers = connection_answers(s, t, protocol);
		} else {
			answers = overtaken_service(s, peer, protocol, service, &time);
		}
		if (!mode_has_hash(mode) || (answers && time > current_mark()))
			return answers;
		/* The hash does not tell what was only sent from a connection. */
		p = peers_get(s);
		if ((answers || (!t && peers_has(s, p, peer))) && !ctx_legacy_is_newer(s, peer))
			return answers;
	}
	return mode_has_hash(mode) && legacy_service(s, peer, protocol, mode, service);
}
