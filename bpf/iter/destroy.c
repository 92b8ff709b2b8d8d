//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Destroys the sockets that user space has found to be connected to a backend that is gone.
 *
 * What it has found may be outdated: a socket may have disconnected, or connected elsewhere. Since
 * 6.5, where bpf_sock_destroy came, these iterators hold the lock of the socket while the program
 * runs. So what a program finds to be true is still true when it destroys the socket.
 */
#include "kernel_iter.h"

#include "table.h"
#include "tuple.h"

enum {
	VERDICT_NONE = 0, /* not met, by the iterator of this namespace and protocol */
	VERDICT_DESTROYED = 1,
	VERDICT_CHANGED = 2, /* no longer the connection that it was */
	/* below 0: -errno of bpf_sock_destroy */
};

struct revsk_victim {
	union ip_addr peer;
	union ip_addr service;
	__be16 peer_port;
	__be16 service_port;
	__s32 verdict; /* VERDICT_*, set by the program */
};

_Static_assert(sizeof(struct revsk_victim) == 40, "revsk_victim is 40 bytes");

/* By cookie. User space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u64);
	__type(value, struct revsk_victim);
} revsk_victims SEC(".maps");

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* An application has it open, and it is connected or is about to be. */
static __always_inline bool is_in_use(struct sock_common *sk_common)
{
	struct socket *socket = NULL;

	if (!is_connected(sk_common))
		return false;
	/* A whole socket, but the verifier does not know that. */
	bpf_probe_read_kernel(&socket, sizeof(socket), &((struct sock *)sk_common)->sk_socket);
	return socket;
}

static __always_inline bool names(const struct revsk_tuple *t, const struct revsk_victim *v)
{
	return t->service_port == v->service_port && ip_equal(&t->service, &v->service);
}

/* A connect that was overtaken is what the socket is connected by. */
static __always_inline bool is_connected_by_overtaken(struct sock_common *sk,
						      const struct endpoint *peer,
						      const struct revsk_victim *v)
{
	struct revsk_peers_value *p = bpf_sk_storage_get(&revsk_peers, sk, NULL, 0);
	const struct revsk_tuple *t = NULL;
	struct table_ref r;

	if (!p)
		return false;
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		if (tuple_has_peer(&p->slots[i], peer))
			t = &p->slots[i];
	if (!t) {
		r = table_get(sk, p, peer_hash(peer));
		t = r.t ? table_search(r, peer_hash(peer), peer) : NULL;
	}
	return t && (t->flags & REVSK_TUPLE_OVERTAKEN) && names(t, v);
}

/* As revnat_peername: what the socket remembers of its actual peer, @peer. */
static __always_inline bool is_connected_by(struct sock_common *sk, const struct endpoint *peer,
					    const struct revsk_victim *v)
{
	struct revsk_conn_value *conn = bpf_sk_storage_get(&revsk_conn, sk, NULL, 0);
	struct revsk_former_value *former = NULL;

	if (conn && tuple_has_peer(&conn->tuple, peer))
		return names(&conn->tuple, v);
	if (conn && (conn->bits & REVSK_CONN_HAS_FORMER))
		former = bpf_sk_storage_get(&revsk_former, sk, NULL, 0);
	if (former && tuple_has_peer(&former->tuple, peer))
		return names(&former->tuple, v);
	return is_connected_by_overtaken(sk, peer, v);
}

static __always_inline __s32 verdict(struct sock_common *sk_common, const struct revsk_victim *v)
{
	const struct endpoint peer = actual_peer(sk_common);
	int err;

	if (peer.port != v->peer_port || !ip_equal(&peer.addr, &v->peer) || !is_in_use(sk_common) ||
	    !is_connected_by(sk_common, &peer, v))
		return VERDICT_CHANGED;
	err = bpf_sock_destroy(sk_common);
	return err ? err : VERDICT_DESTROYED;
}

static __always_inline int visit(struct sock_common *sk_common)
{
	struct revsk_victim *v;
	__u64 cookie;

	if (!sk_common)
		return 0;
	/* Not by the helper, which would give a cookie to every socket there is. */
	cookie = sk_common->skc_cookie.counter;
	v = bpf_map_lookup_elem(&revsk_victims, &cookie);
	if (v && v->verdict == VERDICT_NONE)
		v->verdict = verdict(sk_common, v);
	return 0;
}

SEC("iter/tcp") int destroy_tcp(struct bpf_iter__tcp *ctx)
{
	return visit(ctx->sk_common);
}

SEC("iter/udp") int destroy_udp(struct bpf_iter__udp *ctx)
{
	return visit((struct sock_common *)ctx->udp_sk);
}

char _license[] SEC("license") = "Dual BSD/GPL";
