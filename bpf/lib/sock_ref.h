/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The socket that a program works on. Which helper gives a socket's cookies depends on the type of
 * the program, so the program that includes the library defines the functions declared here
 * (hook.h does for the cgroup hooks); they are asked only where an answer is needed: the first
 * question makes the kernel generate the cookie, and reading the clock costs more than a lookup.
 */
#pragma once

#include "config.h"
#include "endpoint.h"
#include "kernel.h"

struct sock_ref {
	void *ctx;
	struct bpf_sock *sk;
	__u64 cookie; /* 0: not asked yet */
};

static __always_inline __u64 ctx_socket_cookie(void *ctx);
/* Now, as the time of a tuple. */
static __always_inline __u32 ctx_time(void);
/*
 * A program that ran before this one has rejected the call: nothing comes of it, so nothing is written for it.
 * Where most calls write nothing anyway it is asked late: where processors return slowly from functions (Safe
 * RET), the kernel's answer takes a tenth of a send.
 */
static __always_inline bool ctx_is_rejected(void);

static __always_inline __u64 sock_cookie(struct sock_ref *s)
{
	if (!s->cookie)
		s->cookie = ctx_socket_cookie(s->ctx);
	return s->cookie;
}

/* The socket's actual peer, as the kernel has it. */
static __always_inline struct endpoint sock_peer(struct bpf_sock *socket)
{
	/* volatile, and all read at once: else the compiler merges the loads of both families into
	 * one from an address that it computes, and the verifier refuses that of a context.
	 */
	volatile struct bpf_sock *sk = socket;
	const union ip_addr v4 = ip_from_v4(sk->dst_ip4);
	const union ip_addr v6 = { .words = { sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2],
					      sk->dst_ip6[3] } };
	const struct endpoint peer = {
		.addr = sk->family == AF_INET6 ? v6 : v4,
		.port = (__be16)sk->dst_port,
	};

	return peer;
}
