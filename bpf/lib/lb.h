/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The forward path: which backend a destination goes to. */
#pragma once

#include "affinity.h"
#include "metrics.h"
#include "service.h"
#include "tuple.h"

/*
 * What is chosen for a destination, in one number, which is what a global function can return: the
 * backend's id in the high half, then the index of the service, then, if the backend is a proxy on
 * this host, which has no id, its port. Or one of these.
 */
#define LB_UNTRANSLATED 0ULL
#define LB_UNREACHABLE (~0ULL) /* the call is to be rejected */
#define LB_CHOICE(backend_id, rev_nat_index, proxy_port)                                           \
	((__u64)(backend_id) << 32 | (__u32)(rev_nat_index) << 16 | (proxy_port))

static __always_inline bool translatable(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

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

/* What is chosen for, once the service is found. */
struct lb_found {
	union ip_addr addr; /* what the application asked for */
	struct lb_service service;
	__be16 port;
	__u8 protocol;
	/* Of the key under which the service was found. */
	__u8 key_protocol;
	__u8 scope;
	bool any_address;
};

/*
 * The id of one of the service's active backends, 0 if there is none: by random for TCP; by socket
 * cookie otherwise, so that one socket keeps to one backend. Quarantined slots follow the active
 * ones and are never chosen.
 */
static __always_inline __u32 select_backend(struct sock_ref *s, const struct service_key *key,
					    __u32 backends, __u8 protocol)
{
	struct lb_service *slot;
	__u32 n;

	if (!backends)
		return 0;
	/* The whole cookie counts, but only that pays for a division of 64 bits. */
	if (protocol == IPPROTO_TCP)
		n = bpf_get_prandom_u32() % backends;
	else
		n = sock_cookie(s) % backends;
	slot = service_entry(key, n + 1);
	return slot ? slot_backend_id(slot) : 0;
}

/* The key under which the service was found. */
static __always_inline struct service_key found_key(const struct lb_found *f)
{
	const struct service_key key = {
		.frontend = {
			.addr = f->any_address ? ip_any(&f->addr) : f->addr,
			.port = f->port,
		},
		.protocol = f->key_protocol,
		.scope = f->scope,
	};

	return key;
}

/*
 * Chooses the backend of the service.
 *
 * Out of line: most connects go to no service, and need none of the stack and the registers.
 *
 * The address is read again at each step (forget_memory), or the verifier would walk each step once
 * for each family.
 */
static __noinline __u64 lb_choose_backend(struct sock_ref *s, const struct lb_found *f)
{
	const struct lb_service *svc = &f->service;
	struct service_key key;
	struct endpoint backend;
	__u32 backend_id = 0;
	bool sticky;

	if (!svc->count && !service_has_proxy(svc)) {
		if (!cfg_reject_no_backend && !service_is_local(svc))
			return LB_UNTRANSLATED;
		return LB_UNREACHABLE;
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
		return LB_CHOICE(0, svc->rev_nat_index, service_proxy_port(svc));
	}
	sticky = cfg_session_affinity && (svc->flags & SVC_AFFINITY);
	/* Affinity is written to: not for what comes to nothing. */
	if (sticky && ctx_is_rejected())
		return LB_UNTRANSLATED;
	if (sticky) {
		backend_id = affinity_backend(svc, &f->addr, ctx_netns_cookie(s->ctx));
		forget_memory();
		if (backend_id && !backend_lookup(backend_id, &f->addr, &backend))
			backend_id = 0;
		forget_memory();
	}
	if (!backend_id) {
		key = found_key(f);
		backend_id = select_backend(s, &key, svc->count, f->protocol);
		if (!backend_id)
			return LB_UNREACHABLE;
		forget_memory();
		if (sticky && backend_lookup(backend_id, &f->addr, &backend))
			affinity_store(svc, &f->addr, ctx_netns_cookie(s->ctx), backend_id);
	}
	return LB_CHOICE(backend_id, svc->rev_nat_index, 0);
}

/* What a global function is told beside the protocol: service_lookup_first has found nothing. */
#define LB_FOUND_NOTHING (1 << 8)

/*
 * The choice for a destination: LB_UNTRANSLATED if no service answers for it. @protocol may have
 * LB_FOUND_NOTHING.
 */
static __always_inline __u64 lb_choose_any(struct sock_ref *s, const struct endpoint *dst,
					   __u32 protocol)
{
	struct service_key key = { .frontend = *dst, .protocol = protocol };
	const struct revsk_config_value *cfg;
	struct lb_service *svc = NULL;
	struct lb_found found;

	if (protocol & LB_FOUND_NOTHING)
		service_key_first(&key);
	else
		svc = service_lookup_first(&key);
	svc = service_lookup_ordinary(s, &key, svc);
	if (!svc)
		return LB_UNTRANSLATED;
	/* One by one: a compound literal would be written elsewhere first, in other parts than it is read. */
	found.addr = dst->addr;
	found.service = *svc;
	found.port = dst->port;
	found.protocol = protocol;
	found.key_protocol = key.protocol;
	found.scope = key.scope;
	found.any_address = !ip_equal(&key.frontend.addr, &dst->addr);
	if (cfg_imprecise_verifier) {
		cfg = current_config();
		if (!cfg)
			return LB_UNTRANSLATED;
		found.addr = ip_unknown(&dst->addr, cfg);
	}
	return lb_choose_backend(s, &found);
}

/* lb_choose_any, as a function of its own; for a program that sees IPv4 only, or both. */
static __always_inline __u64 ctx_choose_any(struct sock_ref *s, const struct endpoint *dst,
					    __u32 protocol, bool v6);

/* A service of which nothing has to be known but its backends: see lb_choose_backend. */
static __always_inline bool service_is_plain(const struct lb_service *svc)
{
	return svc->count && !(svc->flags & (SVC_EXTERNAL_IP | SVC_HOST_PORT | SVC_AFFINITY)) &&
	       !(svc->flags2 & (SVC_LOCAL_REDIRECT | SVC_NAT_46X64 | SVC_L7_LOAD_BALANCER |
				SVC_L7_DELEGATE | SVC_TWO_SCOPES));
}

/*
 * The choice for a destination. What most services are is decided right here, and the others by a function of
 * its own; old verifiers have no room for that.
 */
static __always_inline __u64 lb_choose(struct sock_ref *s, const struct endpoint *dst,
				       __u32 protocol, bool v6)
{
	struct service_key key = { .frontend = *dst, .protocol = protocol };
	const struct lb_service *svc;
	__u32 backend_id;

	if (ip_is_v4(&dst->addr) ? !cfg_ipv4 : !cfg_ipv6)
		return LB_UNTRANSLATED;
	if (cfg_host_netns_only && !netns_is_host(s))
		return LB_UNTRANSLATED;
	if (cfg_imprecise_verifier)
		return ctx_choose_any(s, dst, protocol, v6);
	svc = service_lookup_first(&key);
	if (!svc)
		return ctx_choose_any(s, dst, protocol | LB_FOUND_NOTHING, v6);
	if (!service_is_plain(svc))
		return ctx_choose_any(s, dst, protocol, v6);
	backend_id = select_backend(s, &key, svc->count, protocol);
	return backend_id ? LB_CHOICE(backend_id, svc->rev_nat_index, 0) : LB_UNREACHABLE;
}

/*
 * Fills @t with the tuple to remember of a choice; false if the backend does not exist. The service
 * recorded is what the application asked for, not the wildcard address that the service was found under.
 */
static __always_inline bool lb_tuple(__u64 choice, const struct endpoint *dst,
				     struct revsk_tuple *t)
{
	__u32 backend_id = choice >> 32;
	const struct revsk_config_value *cfg;
	struct endpoint backend;

	if (!backend_id) {
		backend.addr = ip_loopback(&dst->addr);
		backend.port = choice;
	} else if (!backend_lookup(backend_id, &dst->addr, &backend)) {
		return false;
	}
	t->peer = backend.addr;
	if (cfg_imprecise_verifier) {
		cfg = current_config();
		if (!cfg)
			return false;
		t->peer = ip_unknown(&backend.addr, cfg);
	}
	t->peer_port = backend.port;
	t->service = dst->addr;
	t->service_port = dst->port;
	t->rev_nat_index = choice >> 16;
	t->backend_id = backend_id;
	/* Nothing of it needs a register, or another place on the stack. */
	forget_memory();
	return true;
}
