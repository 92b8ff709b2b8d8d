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

static __always_inline __u32 ctx_time(void)
{
	return tuple_time(cfg_coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns());
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
