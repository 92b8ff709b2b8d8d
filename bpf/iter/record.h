/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the dump says of one socket: a header about the socket itself, then the value that it has
 * in the map that is dumped.
 *
 * Records go through a ring buffer and not through seq_write: the seq_file of a storage map counts
 * its way to where it was after every full buffer, so a long output is quadratic, and what does not
 * fit is run again.
 */
#pragma once

#include "kernel_iter.h"
#include "table.h"

/* Of the kernel's interface: flags of bpf_ringbuf_submit and bpf_ringbuf_discard. */
enum {
	BPF_RB_NO_WAKEUP = 1 << 0,
};

struct revsk_socket {
	__u64 id; /* the kernel's address of the socket: tells sockets without a cookie apart */
	__u64 cookie; /* 0: the socket has none yet */
	__u64 inode; /* as in /proc/PID/fd; 0: no longer, or not yet, a file's */
	__u64 netns_cookie; /* 0: the kernel does not tell */
	__u32 netns_inode;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u8 state;
	__u8 pad;
	__u16 local_port; /* host byte order, as the kernel has it */
	__be16 peer_port;
	union ip_addr local;
	union ip_addr peer;
};

_Static_assert(sizeof(struct revsk_socket) == 80, "revsk_socket is 80 bytes");

struct revsk_conn_record {
	struct revsk_socket socket;
	struct revsk_conn_value value; /* its lock never taken */
};

struct revsk_former_record {
	struct revsk_socket socket;
	struct revsk_former_value value;
};

struct revsk_peers_record {
	struct revsk_socket socket;
	struct revsk_peers_value value;
};

/* The tuples of a table; so many as its class has. */
struct revsk_table_record {
	struct revsk_socket socket;
	struct revsk_tuple tuples[TABLE_TUPLES(1)];
};

_Static_assert(sizeof(struct revsk_conn_record) == 80 + 56, "no padding before the value");
_Static_assert(sizeof(struct revsk_former_record) == 80 + 56, "no padding before the value");
_Static_assert(sizeof(struct revsk_peers_record) == 80 + 184, "no padding before the value");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space decides */
} revsk_records SEC(".maps");

/*
 * Records that the ring buffer had no room for, or that changed while they were made: user space reads
 * that part of the sockets again, in smaller parts.
 */
__u64 revsk_records_lost = 0;
__u64 revsk_records_torn = 0;

/* The part of the sockets that is wanted: those whose hash is from first to last. */
__u32 revsk_part_first = 0;
__u32 revsk_part_last = 0;

/* What sockets are wanted. 0: all. */
__u32 revsk_wanted_netns = 0; /* inode */
__u16 revsk_wanted_protocol = 0;

__u64 revsk_address = 0; /* scratch memory */

/*
 * The hash is one of the socket's address. The verifier lets nobody calculate with a pointer, but it can be
 * stored as a number.
 */
static __always_inline bool record_is_wanted(struct sock *sk)
{
	__u32 hash;

	*(volatile __u64 *)&revsk_address = (__u64)sk;
	hash = (*(volatile __u64 *)&revsk_address >> 6) * 0x9e3779b97f4a7c15ULL >> 32;
	if (hash < revsk_part_first || hash > revsk_part_last)
		return false;
	if (revsk_wanted_protocol && sk->sk_protocol != revsk_wanted_protocol)
		return false;
	return !revsk_wanted_netns || sk->__sk_common.skc_net.net->ns.inum == revsk_wanted_netns;
}

static __always_inline void *record_reserve(__u64 size)
{
	void *record = bpf_ringbuf_reserve(&revsk_records, size, 0);

	if (!record)
		__sync_fetch_and_add(&revsk_records_lost, 1);
	return record;
}

static __always_inline void record_socket(struct revsk_socket *r, struct sock *sk, __u64 cookie)
{
	struct sock_common *c = &sk->__sk_common;
	const struct endpoint peer = actual_peer(c);
	struct net *net = c->skc_net.net;

	r->id = (__u64)sk;
	r->cookie = cookie;
	/* Reading through a pointer that is NULL gives 0. */
	r->inode = sk->sk_socket->file->f_inode->i_ino;
	r->netns_cookie = bpf_core_field_exists(net->net_cookie) ? net->net_cookie : 0;
	r->netns_inode = net->ns.inum;
	r->family = c->skc_family;
	r->type = sk->sk_type;
	r->protocol = sk->sk_protocol;
	r->state = c->skc_state;
	r->pad = 0;
	r->local_port = c->skc_num;
	r->peer_port = peer.port;
	r->local = local_address(c);
	r->peer = peer.addr;
}
