/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The part of the kernel's own types that the iterators read, kept by hand. Unlike the context
 * structs of the hooks these are no interface: preserve_access_index makes every access a CO-RE
 * relocation, so only the names of the members matter here, not their offsets.
 */
#pragma once

#include "endpoint.h"
#include "kernel.h"

#include <bpf/bpf_core_read.h>

/* The states of sockets that are not connected, of any protocol. */
enum {
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_LISTEN = 10,
	TCP_NEW_SYN_RECV = 12,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

typedef struct {
	atomic_t refs;
} refcount_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	__u64 net_cookie; /* a number since 5.12 */
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr; /* with CONFIG_IPV6 */
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	refcount_t skc_refcnt;
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
	void *private_data;
	atomic64_t f_count; /* of references, before 6.13 */
};

typedef struct {
	atomic64_t refcnt; /* negative: there is none any more */
} file_ref_t;

struct file___6_13 {
	file_ref_t f_ref;
};

struct sock;

struct socket {
	struct file *file;
	struct sock *sk;
};

struct sk_buff {
	struct sk_buff *next;
	char cb[48]; /* the owner's own, such as struct unix_skb_parms */
};

struct sk_buff_head {
	struct sk_buff *next;
};

struct scm_fp_list {
	short count;
	struct file *fp[253];
};

struct unix_skb_parms {
	struct scm_fp_list *fp;
};

typedef struct {
	int owned; /* a system call works on the socket */
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct sk_buff_head sk_receive_queue;
	__u16 sk_type;
	__u16 sk_protocol;
	struct socket *sk_socket;
};

struct inet_sock {
	struct sock sk;
};

struct tcp_sock {
	bool is_mptcp; /* since 5.6, with CONFIG_MPTCP */
};

struct udp_sock {
	struct inet_sock inet;
};

struct unix_sock {
	struct sock sk;
};

struct task_struct {
	int pid; /* of the thread */
	int tgid; /* of the process */
};

struct seq_file;

struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq); /* the output */
};

#pragma clang attribute pop

struct bpf_map;

/* Context of iter/bpf_sk_storage_map. The last call of an iteration has neither socket nor value. */
struct bpf_iter__bpf_sk_storage_map {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(struct sock *, sk);
	__bpf_md_ptr(void *, value);
};

/*
 * Contexts of iter/tcp, iter/udp, iter/unix and iter/task_file. The last call of an iteration has no object.
 * Besides sockets iter/tcp visits what is left of some, which have no storage.
 */
struct bpf_iter__tcp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct sock_common *, sk_common);
};

struct bpf_iter__udp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct udp_sock *, udp_sk);
};

struct bpf_iter__unix {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct unix_sock *, unix_sk);
};

struct bpf_iter__task_file {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct task_struct *, task);
	__u32 fd __attribute__((aligned(8)));
	__bpf_md_ptr(struct file *, file);
};

/*
 * The last descriptor has been closed: the release hook runs, or has run. It does not hold the lock of the
 * socket.
 */
static __always_inline bool is_closed(struct sock *sk)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);
	struct file *file;

	if (!socket)
		return true;
	file = BPF_CORE_READ(socket, file);
	if (!file)
		return false; /* a socket of the kernel's own */
	if (bpf_core_field_exists(struct file___6_13, f_ref))
		return BPF_CORE_READ((struct file___6_13 *)file, f_ref.refcnt.counter) < 0;
	return BPF_CORE_READ(file, f_count.counter) <= 0;
}

/* Connected, or about to be, of any protocol. */
static __always_inline bool is_connected(const struct sock_common *c)
{
	switch (c->skc_state) {
	case TCP_CLOSE:
	case TCP_TIME_WAIT:
	case TCP_LISTEN:
	case TCP_NEW_SYN_RECV:
		return false;
	}
	return true;
}

static __always_inline union ip_addr local_address(const struct sock_common *c)
{
	union ip_addr a = ip_from_v4(c->skc_rcv_saddr);

	if (c->skc_family == AF_INET6 && bpf_core_field_exists(c->skc_v6_rcv_saddr))
		bpf_probe_read_kernel(&a, sizeof(a), &c->skc_v6_rcv_saddr);
	return a;
}

/* The peer that the kernel has the socket connected to; without a port it is not. */
static __always_inline struct endpoint actual_peer(const struct sock_common *c)
{
	struct endpoint ep = { .addr = ip_from_v4(c->skc_daddr), .port = c->skc_dport };

	if (c->skc_family == AF_INET6 && bpf_core_field_exists(c->skc_v6_daddr))
		bpf_probe_read_kernel(&ep.addr, sizeof(ep.addr), &c->skc_v6_daddr);
	return ep;
}
