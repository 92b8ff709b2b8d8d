/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The network namespace that a program's socket is in. As in sock_ref.h, the program that includes
 * the library defines the functions declared here.
 */
#pragma once

#include "config.h"
#include "sock_ref.h"

static __always_inline __u64 ctx_netns_cookie(void *ctx);
static __always_inline __u64 ctx_host_netns_cookie(void);

static __always_inline bool netns_is_host(struct sock_ref *s)
{
	__u64 host = cfg_host_netns_cookie;

	if (!host)
		host = ctx_host_netns_cookie();
	return ctx_netns_cookie(s->ctx) == host;
}
