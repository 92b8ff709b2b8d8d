/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The socket that a program works on. Which helper gives a socket's cookies depends on the type of
 * the program, so the program that includes the library defines the functions declared here
 * (hook.h does for the cgroup hooks); they are asked only where an answer is needed: the first
 * question makes the kernel generate the cookie, and reading the clock costs more than a lookup.
 */
#pragma once

#include "config.h"
#include "kernel.h"

struct sock_ref {
	void *ctx;
	struct bpf_sock *sk;
	__u64 cookie; /* 0: not asked yet */
};

static __always_inline __u64 ctx_socket_cookie(void *ctx);
static __always_inline __u64 ctx_netns_cookie(void *ctx);
static __always_inline __u64 ctx_host_netns_cookie(void);
/* CLOCK_MONOTONIC, in seconds. */
static __always_inline __u32 ctx_seconds_since_boot(void);

static __always_inline __u64 sock_cookie(struct sock_ref *s)
{
	if (!s->cookie)
		s->cookie = ctx_socket_cookie(s->ctx);
	return s->cookie;
}

static __always_inline bool netns_is_host(struct sock_ref *s)
{
	__u64 host = cfg_host_netns_cookie;

	if (!host)
		host = ctx_host_netns_cookie();
	return ctx_netns_cookie(s->ctx) == host;
}
