/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The reverse path's look at the services: whether what is remembered is still so. */
#pragma once

#include "service.h"
#include "tuple.h"

static __always_inline bool service_is_of(const struct lb_service *svc, const struct revsk_tuple *t)
{
	return svc->rev_nat_index == t->rev_nat_index && (svc->count || service_has_proxy(svc));
}

/*
 * The service that a tuple names still stands for its peer: it exists, with the same reverse-NAT
 * index, and has backends.
 */
static __always_inline bool tuple_is_current(struct sock_ref *s, const struct revsk_tuple *t,
					     __u8 protocol)
{
	struct service_key key = { .frontend = tuple_service(t), .protocol = protocol };
	struct lb_service *svc = service_lookup(s, &key);

	return svc && service_is_of(svc, t);
}
