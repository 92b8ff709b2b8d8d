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

/* A backend of a service. */
struct revsk_look_backend {
	union ip_addr addr;
	__be16 port;
	__u16 protocol;
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_look_backend) == 24, "revsk_look_backend is 24 bytes");

/* And how many sockets without entries are connected to it, beside those in revsk_look_lacking. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* user space decides */
	__type(key, struct revsk_look_backend);
	__type(value, __u32);
} revsk_look_backends SEC(".maps");

/* A socket without entries that is connected to a backend. */
struct revsk_look_connected {
	__u64 cookie;
	struct revsk_look_backend backend;
};

_Static_assert(sizeof(struct revsk_look_connected) == 32, "revsk_look_connected is 32 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u32);
	__type(value, struct revsk_look_connected);
} revsk_look_lacking SEC(".maps");

/* How many there are. One program runs at a time. */
__u32 revsk_lacking = 0;

/* How many of the sockets have been found. */
__u64 revsk_found = 0;

/* Note the sockets that are connected to a backend. */
volatile const bool cfg_note_lacking = false;

static __always_inline void note_lacking(__u64 cookie, const struct endpoint *peer, __u16 protocol)
{
	struct revsk_look_connected lacking = {
		.cookie = cookie,
		.backend = {
			.addr = peer->addr,
			.port = peer->port,
			.protocol = protocol,
		},
	};
	__u32 place = revsk_lacking;
	__u32 *n;

	if (!peer->port)
		return;
	n = bpf_map_lookup_elem(&revsk_look_backends, &lacking.backend);
	if (!n)
		return;
	if (bpf_map_update_elem(&revsk_look_lacking, &place, &lacking, BPF_ANY))
		__sync_fetch_and_add(n, 1); /* no room */
	else
		revsk_lacking = place + 1;
}

static __always_inline void look(const struct sock_common *c, __u16 protocol, bool in_table)
{
	__u64 cookie = c->skc_cookie.counter; /* 0: it has none, so it never had entries */
	const struct endpoint peer = actual_peer(c);
	struct revsk_look_socket *found;

	if (!cookie)
		return;
	found = bpf_map_lookup_elem(&revsk_look_sockets, &cookie);
	if (found) {
		found->peer = peer.addr;
		found->peer_port = peer.port;
		found->family = c->skc_family;
		found->protocol = protocol;
		if (!found->found)
			__sync_fetch_and_add(&revsk_found, 1);
		found->found = 1;
	} else if (in_table && cfg_note_lacking) {
		note_lacking(cookie, &peer, protocol);
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
