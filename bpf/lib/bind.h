/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket of the host may be bound to, and where the health checker's sockets are. */
#pragma once

#include "service.h"

/* SO_MARK of the health checker's sockets. */
#define HEALTH_CHECK_MARK 0x0d00

LB_MAP(cilium_lb4_health, BPF_MAP_TYPE_LRU_HASH, __u64, struct lb4_backend, 65536, 0);
LB_MAP(cilium_lb6_health, BPF_MAP_TYPE_LRU_HASH, __u64, struct lb6_backend, 65536, 0);

/*
 * A socket of the host on this address would take the traffic of a service that the node serves to
 * the outside: by its very address, or by its NodePort on an address of this host.
 */
static __always_inline bool bind_would_hijack(struct sock_ref *s, const struct endpoint *local,
					      __u8 protocol)
{
	struct service_key key = { .frontend = *local, .protocol = protocol };
	struct lb_service *svc = service_lookup_exact(&key);

	if (!svc && cfg_nodeport && port_is_nodeport(local->port) &&
	    (ip_is_loopback(&local->addr) || ip_is_host(&local->addr)))
		svc = service_lookup_any_address(&key, protocol);
	return svc && (svc->flags & SVC_EXTERNAL) && !service_is_l7(svc) &&
	       !service_is_l7_delegate(svc);
}

/* Remembers what a health checker's socket was to be bound to. Returns 0 or -ENOBUFS. */
static __always_inline int health_bind(struct sock_ref *s, const struct endpoint *local,
				       __u8 protocol)
{
	__u64 cookie = sock_cookie(s);
	long err;

	if (ip_is_v4(&local->addr)) {
		struct lb4_backend b = {
			.address = ip_to_v4(&local->addr),
			.port = local->port,
			.protocol = protocol,
		};

		err = bpf_map_update_elem(&cilium_lb4_health, &cookie, &b, BPF_ANY);
	} else {
		struct lb6_backend b = {
			.address = local->addr,
			.port = local->port,
			.protocol = protocol,
		};

		err = bpf_map_update_elem(&cilium_lb6_health, &cookie, &b, BPF_ANY);
	}
	return err ? -ENOBUFS : 0;
}
