/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which sockets user space wants to hear of. It has the last word: what these functions let pass may be
 * more than is wanted, never less.
 */
#pragma once

#include "kernel_iter.h"
#include "tuple.h"

/* 0: all. */
__u64 revsk_wanted_cookie = 0;
__u32 revsk_wanted_netns = 0; /* inode */
__u16 revsk_wanted_protocol = 0;

/* Only by the tuple by which the socket is connected now. */
bool revsk_wanted_connected = false;

/* How services and backends are chosen. */
enum revsk_wanted {
	REVSK_WANTED_ALL = 0,
	REVSK_WANTED_THESE = 1, /* the service; the backends in the map, of their protocol */
	REVSK_WANTED_ALIKE =
		2, /* services of its family and port; backends of every protocol, too */
};

struct revsk_wanted_service {
	union ip_addr addr;
	__be16 port;
	__u8 how; /* enum revsk_wanted */
	__u8 pad[5];
};

struct revsk_wanted_service revsk_wanted_frontend = {};
__u8 revsk_wanted_backends_how = REVSK_WANTED_ALL;

struct revsk_wanted_backend {
	union ip_addr addr;
	__be16 port;
	__u16 protocol; /* 0: every one */
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_wanted_backend) == 24, "revsk_wanted_backend is 24 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 14); /* with more, user space does without */
	__type(key, struct revsk_wanted_backend);
	__type(value, __u8);
} revsk_wanted_backends SEC(".maps");

static __always_inline bool socket_is_wanted(struct sock *sk)
{
	struct sock_common *c = &sk->__sk_common;

	if (revsk_wanted_cookie && c->skc_cookie.counter != revsk_wanted_cookie)
		return false;
	if (revsk_wanted_protocol && sk->sk_protocol != revsk_wanted_protocol)
		return false;
	if (revsk_wanted_netns && c->skc_net.net->ns.inum != revsk_wanted_netns)
		return false;
	return !revsk_wanted_connected || is_connected(c);
}

static __always_inline bool service_is_wanted(const struct revsk_tuple *t)
{
	const struct revsk_wanted_service *w = &revsk_wanted_frontend;

	if (w->how == REVSK_WANTED_ALL)
		return true;
	if (t->service_port != w->port)
		return false;
	if (w->how == REVSK_WANTED_THESE)
		return ip_equal(&t->service, &w->addr);
	return ip_is_v4(&t->service) == ip_is_v4(&w->addr);
}

static __always_inline bool backend_is_wanted(const struct revsk_tuple *t, __u16 protocol)
{
	struct revsk_wanted_backend key = { .addr = t->peer, .port = t->peer_port };

	if (revsk_wanted_backends_how == REVSK_WANTED_ALL)
		return true;
	key.protocol = protocol;
	if (bpf_map_lookup_elem(&revsk_wanted_backends, &key))
		return true;
	if (revsk_wanted_backends_how != REVSK_WANTED_ALIKE)
		return false;
	key.protocol = 0;
	return bpf_map_lookup_elem(&revsk_wanted_backends, &key);
}

/* @peer is the socket's actual one. */
static __always_inline bool tuple_is_wanted(const struct revsk_tuple *t,
					    const struct endpoint *peer, __u16 protocol)
{
	if (!t->peer_port || (revsk_wanted_connected && !tuple_has_peer(t, peer)))
		return false;
	return service_is_wanted(t) && backend_is_wanted(t, protocol);
}

/* Whether it matters what tuples a socket has. */
static __always_inline bool tuples_matter(void)
{
	return revsk_wanted_connected || revsk_wanted_frontend.how || revsk_wanted_backends_how;
}
