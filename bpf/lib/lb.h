/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The forward path: which backend a destination goes to. */
#pragma once

#include "affinity.h"
#include "metrics.h"
#include "service.h"
#include "tuple.h"

enum {
	LB_UNTRANSLATED = 0,
	LB_TRANSLATED = 1,
	/* below 0: -errno, the call is to be rejected */
};

static __always_inline bool translatable(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

struct lb_request {
	struct endpoint dst; /* what the application asked for */
	__u8 protocol;
};

/* A local-redirect service that this namespace is told to bypass. */
static __always_inline bool local_redirect_skipped(struct sock_ref *s, const union ip_addr *addr,
						   __be16 port)
{
	if (ip_is_v4(addr)) {
		struct skip_lb4_key key = {
			.netns_cookie = ctx_netns_cookie(s->ctx),
			.address = ip_to_v4(addr),
			.port = port,
		};

		return bpf_map_lookup_elem(&cilium_skip_lb4, &key);
	} else {
		struct skip_lb6_key key = {
			.netns_cookie = ctx_netns_cookie(s->ctx),
			.address = *addr,
			.port = port,
		};

		return bpf_map_lookup_elem(&cilium_skip_lb6, &key);
	}
}

/* Services whose traffic is left to the packet path unless it is for this host. */
static __always_inline bool left_to_packet_path(const struct lb_service *svc,
						const union ip_addr *dst)
{
	if (svc->flags2 & SVC_NAT_46X64)
		return true;
	/* A branch of its own, so that the verifier can remove it. */
	if (cfg_external_ip_mitigation) {
		if ((svc->flags & SVC_EXTERNAL_IP) && !ip_is_host(dst))
			return true;
	}
	return (svc->flags & SVC_HOST_PORT) && !ip_is_loopback(dst) && !ip_is_host(dst);
}

/* What lb_choose chooses for, once the service is found. */
struct lb_found {
	union ip_addr addr; /* what the application asked for */
	__be16 port;
	__u8 protocol;
	/* Of the key under which the service was found. */
	__u8 key_protocol;
	__u8 scope;
	bool any_address;
};

/*
 * One of the service's active backends: by random for TCP; by socket cookie otherwise, so that one
 * socket keeps to one backend. Quarantined slots follow the active ones and are never chosen.
 */
static __always_inline __u32 select_backend(struct sock_ref *s, const struct lb_service *svc,
					    const struct lb_found *f)
{
	const struct service_key key = {
		.frontend = {
			.addr = f->any_address ? ip_any(&f->addr) : f->addr,
			.port = f->port,
		},
		.protocol = f->key_protocol,
		.scope = f->scope,
	};
	__u32 backends = svc->count;
	struct lb_service *slot;
	__u32 n;

	if (!backends)
		return 0;
	/* The whole cookie counts, but only that pays for a division of 64 bits. */
	if (f->protocol == IPPROTO_TCP)
		n = bpf_get_prandom_u32() % backends;
	else
		n = sock_cookie(s) % backends;
	slot = service_entry(&key, n + 1);
	return slot ? slot_backend_id(slot) : 0;
}

/*
 * Chooses the backend of the service and fills @t with the tuple to remember. The service recorded is what
 * the application asked for, not the wildcard address that the service was found under.
 *
 * Out of line: most connects go to no service, and need none of the stack and the registers.
 *
 * The service is copied and the address read again at each step (forget_memory), or the verifier would walk
 * each step once for each family and for each map that the service may be from.
 */
static __noinline int lb_choose(struct sock_ref *s, const struct lb_service *found_service,
				const struct lb_found *f, struct revsk_tuple *t)
{
	const struct lb_service service = *found_service, *svc = &service;
	struct endpoint backend = {};
	bool sticky, chosen = false;
	__u32 backend_id = 0;

	if (!svc->count && !service_has_proxy(svc)) {
		if (!cfg_reject_no_backend && !service_is_local(svc))
			return LB_UNTRANSLATED;
		return -EHOSTUNREACH;
	}
	if (service_is_l7_delegate(svc) || left_to_packet_path(svc, &f->addr))
		return LB_UNTRANSLATED;
	forget_memory();
	if (cfg_local_redirect && (svc->flags2 & SVC_LOCAL_REDIRECT) &&
	    local_redirect_skipped(s, &f->addr, f->port))
		return LB_UNTRANSLATED;
	forget_memory();

	if (service_has_proxy(svc)) {
		/* Elsewhere the packet path hands the traffic to the proxy. */
		if (!netns_is_host(s))
			return LB_UNTRANSLATED;
		backend.addr = ip_loopback(&f->addr);
		backend.port = service_proxy_port(svc);
	} else {
		sticky = cfg_session_affinity && (svc->flags & SVC_AFFINITY);
		if (sticky)
			backend_id = affinity_backend(svc, &f->addr, ctx_netns_cookie(s->ctx));
		forget_memory();
		if (!backend_id || !backend_lookup(backend_id, &f->addr, &backend)) {
			forget_memory();
			backend_id = select_backend(s, svc, f);
			forget_memory();
			if (!backend_id || !backend_lookup(backend_id, &f->addr, &backend))
				return -EHOSTUNREACH;
			chosen = true;
		}
		forget_memory();
		if (sticky && chosen)
			affinity_store(svc, &f->addr, ctx_netns_cookie(s->ctx), backend_id);
	}

	forget_memory();
	t->peer = backend.addr;
	t->peer_port = backend.port;
	t->service = f->addr;
	t->service_port = f->port;
	t->rev_nat_index = svc->rev_nat_index;
	t->backend_id = backend_id;
	return LB_TRANSLATED;
}

/* The service that answers for @req, if any, and in @found what lb_choose is to know of it. */
static __always_inline struct lb_service *
lb_lookup(struct sock_ref *s, const struct lb_request *req, struct lb_found *found)
{
	struct service_key key = { .frontend = req->dst, .protocol = req->protocol };
	const struct revsk_config_value *cfg;
	struct lb_service *svc;

	if (ip_is_v4(&req->dst.addr) ? !cfg_ipv4 : !cfg_ipv6)
		return NULL;
	if (cfg_host_netns_only && !netns_is_host(s))
		return NULL;
	svc = service_lookup_ordinary(s, &key);
	if (!svc)
		return NULL;
	*found = (struct lb_found){
		.addr = req->dst.addr,
		.port = req->dst.port,
		.protocol = req->protocol,
		.key_protocol = key.protocol,
		.scope = key.scope,
		.any_address = !ip_equal(&key.frontend.addr, &req->dst.addr),
	};
	if (cfg_imprecise_verifier) {
		cfg = current_config();
		if (!cfg)
			return NULL;
		found->addr = ip_unknown(&req->dst.addr, cfg);
	}
	return svc;
}
