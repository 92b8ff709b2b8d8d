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

struct lb_request {
	struct endpoint dst; /* what the application asked for */
	__u8 protocol;
};

/* A local-redirect service that this namespace is told to bypass. */
static __always_inline bool local_redirect_skipped(struct sock_ref *s, const struct endpoint *dst)
{
	if (ip_is_v4(&dst->addr)) {
		struct skip_lb4_key key = {
			.netns_cookie = ctx_netns_cookie(s->ctx),
			.address = ip_to_v4(&dst->addr),
			.port = dst->port,
		};

		return bpf_map_lookup_elem(&cilium_skip_lb4, &key);
	} else {
		struct skip_lb6_key key = {
			.netns_cookie = ctx_netns_cookie(s->ctx),
			.address = dst->addr,
			.port = dst->port,
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

/*
 * One of the service's active backends: by random for TCP; by socket cookie otherwise, so that one
 * socket keeps to one backend. Quarantined slots follow the active ones and are never chosen.
 */
static __always_inline __u32 select_backend(struct sock_ref *s, const struct lb_service *svc,
					    const struct service_key *key, __u8 protocol)
{
	__u32 backends = svc->count;
	struct lb_service *slot;
	__u32 n;

	if (!backends)
		return 0;
	/* The whole cookie counts, but only that pays for a division of 64 bits. */
	n = protocol == IPPROTO_TCP ? bpf_get_prandom_u32() % backends : sock_cookie(s) % backends;
	slot = service_entry(key, n + 1);
	return slot ? slot->word : 0;
}

/*
 * Chooses the backend for @req and fills @t with the tuple to remember. The service recorded is
 * what the application asked for, not the wildcard address that the service was found under.
 */
static __noinline int lb_select(struct sock_ref *s, const struct lb_request *req,
				struct revsk_tuple *t)
{
	bool v4 = ip_is_v4(&req->dst.addr);
	struct service_key key = { .frontend = req->dst, .protocol = req->protocol };
	struct endpoint backend = {};
	bool sticky, chosen = false;
	struct lb_service *svc;
	__u32 backend_id = 0;

	if (v4 ? !cfg_ipv4 : !cfg_ipv6)
		return LB_UNTRANSLATED;
	if (cfg_host_netns_only && !netns_is_host(s))
		return LB_UNTRANSLATED;

	svc = service_lookup(s, &key);
	if (!svc)
		return LB_UNTRANSLATED;
	if (!svc->count && !service_has_proxy(svc)) {
		if (!cfg_reject_no_backend && !service_is_local(svc))
			return LB_UNTRANSLATED;
		return -EHOSTUNREACH;
	}
	if (service_is_l7_delegate(svc) || left_to_packet_path(svc, &req->dst.addr))
		return LB_UNTRANSLATED;
	if (cfg_local_redirect && (svc->flags2 & SVC_LOCAL_REDIRECT) &&
	    local_redirect_skipped(s, &req->dst))
		return LB_UNTRANSLATED;

	if (service_has_proxy(svc)) {
		/* Elsewhere the packet path hands the traffic to the proxy. */
		if (!netns_is_host(s))
			return LB_UNTRANSLATED;
		backend.addr = ip_loopback(&req->dst.addr);
		backend.port = (__be16)svc->word;
	} else {
		sticky = cfg_session_affinity && (svc->flags & SVC_AFFINITY);
		if (sticky)
			backend_id =
				affinity_backend(svc, &req->dst.addr, ctx_netns_cookie(s->ctx));
		if (!backend_id || !backend_lookup(backend_id, &req->dst.addr, &backend)) {
			backend_id = select_backend(s, svc, &key, req->protocol);
			if (!backend_id || !backend_lookup(backend_id, &req->dst.addr, &backend))
				return -EHOSTUNREACH;
			chosen = true;
		}
		if (sticky && chosen)
			affinity_store(svc, &req->dst.addr, ctx_netns_cookie(s->ctx), backend_id);
	}

	t->peer = backend.addr;
	t->peer_port = backend.port;
	t->service = req->dst.addr;
	t->service_port = req->dst.port;
	t->rev_nat_index = svc->rev_nat_index;
	t->backend_id = backend_id;
	return LB_TRANSLATED;
}

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
