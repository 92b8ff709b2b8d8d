/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Moves an entry of the hash onto its socket, as the hooks would have stored it. The caller holds the
 * lock of the socket (see revnat.h), so a live hook is never overtaken: what it has written since is
 * there before, and stays.
 */
#pragma once

#include "conn.h"

/* What has become of an entry. The values are the interface to package migrate. */
enum revsk_result {
	REVSK_RESULT_NOT_MET = 0, /* no program has met its socket */
	REVSK_RESULT_CONN = 1, /* moved to revsk_conn, or to revsk_former */
	REVSK_RESULT_PEERS = 2, /* moved to revsk_peers, or a table */
	REVSK_RESULT_PRESENT = 3, /* the socket has a tuple for that peer already */
	REVSK_RESULT_ENDED =
		4, /* a hook has ended it since: the application turned to the peer itself */
	REVSK_RESULT_DISCONNECTED = 5, /* a stream that is not connected to that peer any more */
	REVSK_RESULT_STALE = 6, /* its service is gone: left where it is */
	REVSK_RESULT_NO_ROOM =
		7, /* left where it is: the socket has no memory for more (net.core.optmem_max) */
	REVSK_RESULT_CONFLICT = 8, /* left where it is: revsk_conn is about another peer */
};

struct revsk_import_entry {
	union ip_addr peer;
	union ip_addr service;
	__be16 peer_port;
	__be16 service_port;
	__be16 rev_nat_index;
	__u8 stale; /* by the services as user space has read them */
	__u8 result; /* enum revsk_result */
};

_Static_assert(sizeof(struct revsk_import_entry) == 40, "revsk_import_entry is 40 bytes");

/*
 * Makes @e what the hash says of the peer now: programs may have written it since it was read. If
 * it says nothing, the LRU has evicted the entry, and @e counts as it is; or a hook of ours has
 * removed it: then false.
 */
static __noinline bool import_refresh(struct sock_ref *s, struct revsk_import_entry *e,
				      const struct endpoint *peer)
{
	struct revsk_tuple now = {};

	if (!e || !peer)
		return false;
	if (!legacy_find(sock_cookie(s), peer, &now))
		return !conn_has_ended(conn_get(s), peer);
	e->service = now.service;
	e->service_port = now.service_port;
	e->rev_nat_index = now.rev_nat_index;
	return true;
}

/* The socket has a tuple for @peer that the entry of the hash does not outdate. */
static __noinline bool import_is_present(struct sock_ref *s, const struct endpoint *peer)
{
	struct revsk_peers_value *p = peers_get(s);

	if (!peer || ctx_legacy_is_newer(s, peer))
		return false;
	return connection_find(s, peer) || (p && peers_find(s, p, peer));
}

/* Stores what the socket is connected by. */
static __always_inline enum revsk_result
import_connection(struct sock_ref *s, struct revsk_conn_value *conn, struct revsk_peers_value *p,
		  struct revsk_conn_value *new, const struct endpoint *peer, bool stream)
{
	if (!conn)
		return conn_create(s, new, p) ? REVSK_RESULT_NO_ROOM : REVSK_RESULT_CONN;
	/* Up to the mark others may have replaced the connection; of a datagram socket see below. */
	if (conn_is(conn, peer) || !conn->tuple.peer_port ||
	    (stream && conn->tuple.time <= current_mark())) {
		count_tuple(&new->tuple, conn->tuple.peer_port ? REVSK_UPDATED : REVSK_STORED);
		conn_write(conn, &new->tuple);
		return REVSK_RESULT_CONN;
	}
	/* A hook has replaced the connection, but the kernel has rejected the new one; or as above. */
	if (stream)
		return REVSK_RESULT_CONFLICT;
	if (former_store(s, conn, p, &new->tuple, new->tuple.time, peer))
		return REVSK_RESULT_NO_ROOM;
	count(REVSK_STORED);
	return REVSK_RESULT_CONN;
}

/* @actual is the socket's peer as the kernel has it; port 0: none. @subflow: see REVSK_TUPLE_SUBFLOW. */
static __always_inline enum revsk_result import_entry(struct sock_ref *s,
						      struct revsk_import_entry *e,
						      const struct endpoint *actual, __u8 protocol,
						      bool subflow)
{
	const struct endpoint peer = { .addr = e->peer, .port = e->peer_port };
	bool connected = endpoint_equal(&peer, actual);
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_peers_value *p = peers_get(s);
	struct revsk_conn_value new = { .tuple.flags = REVSK_TUPLE_MIGRATED };

	if (import_is_present(s, &peer))
		return REVSK_RESULT_PRESENT;
	/* What the socket is connected to stays true of it, whatever has become of the service. */
	if (e->stale && !connected)
		return REVSK_RESULT_STALE;
	if (!import_refresh(s, e, &peer))
		return REVSK_RESULT_ENDED;
	if (!connected && protocol == IPPROTO_TCP)
		return REVSK_RESULT_DISCONNECTED;

	/* What was sent by another service is older, too, and would hide what is stored now. */
	if (p && peers_remove(s, p, &peer))
		count(REVSK_DROPPED_REPLACED);
	forget_memory();
	new.tuple.peer = e->peer;
	new.tuple.service = e->service;
	new.tuple.peer_port = e->peer_port;
	new.tuple.service_port = e->service_port;
	new.tuple.rev_nat_index = e->rev_nat_index;
	if (subflow)
		new.tuple.flags |= REVSK_TUPLE_SUBFLOW;
	/*
	 * The time is 0, unknown: the entry may be a leftover. Until the application has confirmed it, it is
	 * judged at every read, as in the hash.
	 */
	if (connected)
		return import_connection(s, conn, p, &new, &peer, protocol == IPPROTO_TCP);
	p = peers_get_or_create(s, p);
	if (!p)
		return REVSK_RESULT_NO_ROOM;
	if (peers_add(s, p, &new.tuple))
		return REVSK_RESULT_NO_ROOM;
	count(REVSK_STORED);
	return REVSK_RESULT_PEERS;
}
