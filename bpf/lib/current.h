/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The reverse path's look at the services: whether what is remembered is still so. */
#pragma once

#include "service.h"

/*
 * The service of this frontend still stands for the peers that were reached by it: it exists, with the same
 * reverse-NAT index, and has backends.
 */
static __always_inline bool service_stands(struct sock_ref *s, const struct endpoint *frontend,
					   __be16 rev_nat_index, __u8 protocol)
{
	struct service_key key = { .frontend = *frontend, .protocol = protocol };
	struct lb_service *svc = service_lookup(s, &key);

	return svc && svc->rev_nat_index == rev_nat_index && (svc->count || service_has_proxy(svc));
}
