/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a socket holds in the layout before this one. There is none: this is the first.
 * docs/design.md ("Layout versions") says what the next one puts here; internal/nextlayout is an example.
 */
#pragma once

#include "kernel.h"

/*
 * Each hook begins with this: what its socket holds in the maps of the layout before goes over to
 * those of this one. No program of the layout before runs any more then.
 */
static __always_inline void carry_over(struct bpf_sock_addr *ctx)
{
}

/* The same for sock_release, which cannot delete storage: the kernel is about to. */
static __always_inline void carry_over_release(struct bpf_sock *ctx)
{
}
