//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Which of the sockets that have entries in the hash there are, and what they are connected to.
 * Nothing is changed.
 *
 * look_tcp and look_udp find those in the protocols' tables of one network namespace; look_files
 * finds those in the file table of a process, whatever their namespace.
 */
#include "kernel_iter.h"

/* A socket that has entries. */
struct revsk_look_socket {
	union ip_addr peer; /* its own; without a port it is not connected */
	__be16 peer_port;
	__u16 family;
	__u16 protocol;
	__u8 found;
	__u8 pad;
};

_Static_assert(sizeof(struct revsk_look_socket) == 24, "revsk_look_socket is 24 bytes");

/* By cookie. User space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u64);
	__type(value, struct revsk_look_socket);
} revsk_look_sockets SEC(".maps");

/* A backend of a service, and how many sockets are connected to it that have no entry at all. */
struct revsk_look_backend {
	union ip_addr addr;
	__be16 port;
	__u16 protocol;
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_look_backend) == 24, "revsk_look_backend is 24 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* user space decides */
	__type(key, struct revsk_look_backend);
	__type(value, __u32);
} revsk_look_backends SEC(".maps");

/* How many of the sockets have been found. */
__u64 revsk_found = 0;

/* Count the sockets that are connected to a backend. */
volatile const bool cfg_count_backends = false;

static __always_inline void count_backend(const struct endpoint *peer, __u16 protocol)
{
	struct revsk_look_backend key = {
		.addr = peer->addr,
		.port = peer->port,
		.protocol = protocol,
	};
	__u32 *n;

	if (!peer->port)
		return;
	n = bpf_map_lookup_elem(&revsk_look_backends, &key);
	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void look(const struct sock_common *c, __u16 protocol, bool in_table)
{
	__u64 cookie = c->skc_cookie.counter; /* 0: it has none, so no entries */
	const struct endpoint peer = actual_peer(c);
	struct revsk_look_socket *found = NULL;

	if (cookie)
		found = bpf_map_lookup_elem(&revsk_look_sockets, &cookie);
	if (found) {
		found->peer = peer.addr;
		found->peer_port = peer.port;
		found->family = c->skc_family;
		found->protocol = protocol;
		if (!found->found)
			__sync_fetch_and_add(&revsk_found, 1);
		found->found = 1;
	} else if (in_table && cfg_count_backends) {
		count_backend(&peer, protocol);
	}
}

SEC("iter/tcp") int look_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_sock *tcp;

	if (!c)
		return 0;
	/* NULL for what is not a whole socket: TIME_WAIT, requests. */
	tcp = bpf_skc_to_tcp_sock(c);
	if (tcp && !is_closed((struct sock *)tcp))
		look(c, IPPROTO_TCP, true);
	return 0;
}

SEC("iter/udp") int look_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;

	if (udp && !is_closed(&udp->inet.sk))
		look(&udp->inet.sk.__sk_common, udp->inet.sk.sk_protocol, true);
	return 0;
}

SEC("iter/task_file") int look_files(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket;

	if (!ctx->task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (socket && socket->sk)
		look(&socket->sk->__sk_common, socket->sk->sk_protocol, false);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
