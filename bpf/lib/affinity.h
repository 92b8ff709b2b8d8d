/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Session affinity of services by the client's network namespace. */
#pragma once

#include "service.h"

#define NSEC_PER_SEC 1000000000ULL
/* Cilium counts jiffies in units of so many bits. */
#define AFFINITY_JIFFIES_SHIFT 8

/*
 * The clock of the entries, which the agent's other programs share: seconds of CLOCK_MONOTONIC, or
 * 256 jiffies where the agent was told to use the kernel's ticks.
 */
static __always_inline __u64 affinity_now(void)
{
	if (cfg_affinity_hz)
		return bpf_jiffies64() >> AFFINITY_JIFFIES_SHIFT;
	return bpf_ktime_get_ns() / NSEC_PER_SEC;
}

static __always_inline __u64 affinity_timeout(const struct lb_service *svc)
{
	__u64 seconds = service_affinity_timeout(svc);

	return cfg_affinity_hz ? seconds * cfg_affinity_hz >> AFFINITY_JIFFIES_SHIFT : seconds;
}

/* The kernel reads as much of the key as the map of the family has. */
union affinity_key {
	struct lb4_affinity_key v4;
	struct lb6_affinity_key v6;
};

static __always_inline union affinity_key affinity_key(const struct lb_service *svc,
						       const union ip_addr *like, __u64 netns)
{
	union affinity_key key = {};

	if (ip_is_v4(like)) {
		key.v4.client = netns;
		key.v4.rev_nat_index = svc->rev_nat_index;
		key.v4.netns_cookie = 1;
	} else {
		key.v6.client = netns;
		key.v6.rev_nat_index = svc->rev_nat_index;
		key.v6.netns_cookie = 1;
	}
	return key;
}

/*
 * The backend that this namespace used last, 0 if none is to be kept to: the entry has expired or
 * its backend is no longer one of the service's; such an entry is deleted.
 */
static __always_inline __u32 affinity_backend(const struct lb_service *svc,
					      const union ip_addr *like, __u64 netns)
{
	__u64 timeout = affinity_timeout(svc);
	struct lb_affinity_match match = { .rev_nat_index = svc->rev_nat_index };
	union affinity_key key = affinity_key(svc, like, netns);
	__u64 now = affinity_now();
	struct lb_affinity_value *v;

	v = ip_is_v4(like) ? bpf_map_lookup_elem(&cilium_lb4_affinity, &key)
			   : bpf_map_lookup_elem(&cilium_lb6_affinity, &key);
	if (!v)
		return 0;
	match.backend_id = v->backend_id;
	if (v->last_used + timeout > now &&
	    bpf_map_lookup_elem(&cilium_lb_affinity_match, &match)) {
		v->last_used = now;
		return match.backend_id;
	}
	if (ip_is_v4(like))
		bpf_map_delete_elem(&cilium_lb4_affinity, &key);
	else
		bpf_map_delete_elem(&cilium_lb6_affinity, &key);
	return 0;
}

static __always_inline void affinity_store(const struct lb_service *svc, const union ip_addr *like,
					   __u64 netns, __u32 backend_id)
{
	union affinity_key key = affinity_key(svc, like, netns);
	struct lb_affinity_value v = {
		.last_used = affinity_now(),
		.backend_id = backend_id,
	};

	if (ip_is_v4(like))
		bpf_map_update_elem(&cilium_lb4_affinity, &key, &v, BPF_ANY);
	else
		bpf_map_update_elem(&cilium_lb6_affinity, &key, &v, BPF_ANY);
}
