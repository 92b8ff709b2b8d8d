/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the cgroup hooks share: their verdicts, and the addresses in their contexts. */
#pragma once

#include "endpoint.h"
#include "netns.h"
#include "sock_ref.h"
#include "tuple.h"

enum {
	HOOK_REJECT = 0,
	HOOK_PROCEED = 1,
};

/* Rejects the call: with @err where the kernel can report it, with EPERM elsewhere. */
static __always_inline int reject(int err)
{
	if (cfg_set_retval)
		bpf_set_retval(err);
	return HOOK_REJECT;
}

static __always_inline bool ctx_is_rejected(void)
{
	return cfg_set_retval && bpf_get_retval();
}

static __always_inline __u64 ctx_socket_cookie(void *ctx)
{
	return bpf_get_socket_cookie(ctx);
}

static __always_inline __u64 ctx_netns_cookie(void *ctx)
{
	return bpf_get_netns_cookie(ctx);
}

static __always_inline __u64 ctx_host_netns_cookie(void)
{
	return bpf_get_netns_cookie(NULL);
}

/*
 * The clock is read once in a tick of the kernel, because reading it, the coarse one too, takes as long as a
 * lookup: the low half is the time, the high one the tick in which it was read. One word, so that hooks on
 * other CPUs see both or neither.
 */
static volatile __u64 clock_read;

static __always_inline __u32 ctx_time(void)
{
	__u32 tick = bpf_jiffies64(), time;
	__u64 last = clock_read;

	if (last >> 32 == tick)
		return last;
	time = tuple_time(bpf_ktime_get_ns());
	clock_read = (__u64)tick << 32 | time;
	return time;
}

static __always_inline struct endpoint hook_address(const struct bpf_sock_addr *ctx, bool v6)
{
	struct endpoint ep = { .port = (__be16)ctx->user_port };

	if (v6) {
		ep.addr.halves[0] = *(const __u64 *)&ctx->user_ip6[0];
		ep.addr.halves[1] = *(const __u64 *)&ctx->user_ip6[2];
	} else {
		ep.addr = ip_from_v4(ctx->user_ip4);
	}
	return ep;
}

/* An IPv4 endpoint goes to an IPv6 context as v4-mapped. */
static __always_inline void hook_set_address(struct bpf_sock_addr *ctx, const struct endpoint *ep,
					     bool v6)
{
	if (v6) {
		*(__u64 *)&ctx->user_ip6[0] = ep->addr.halves[0];
		*(__u64 *)&ctx->user_ip6[2] = ep->addr.halves[1];
	} else {
		ctx->user_ip4 = ip_to_v4(&ep->addr);
	}
	ctx->user_port = ep->port;
}
