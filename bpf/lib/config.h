/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the loader decides. Two kinds:
 * - the mode, switched at run time by one map update, without reloading programs;
 * - load-time constants: the verifier knows their values and removes the branches that they
 *   turn off, so what is not used costs nothing.
 */
#pragma once

#include "kernel.h"

/* Which state the hooks write and read. The order of the values is part of the pinned layout. */
enum revsk_mode {
	REVSK_MODE_STORAGE = 0, /* socket storage only */
	REVSK_MODE_DUAL = 1, /* writes storage and hash, reads storage, then hash */
	REVSK_MODE_LEGACY = 2, /* hash only, as the reference does it */
	/*
	 * As dual, where every entry of the hash that a socket needs is on that socket, too: sockets without
	 * storage have none.
	 */
	REVSK_MODE_MIRROR = 3,
};

struct revsk_config_value {
	__u32 mode; /* enum revsk_mode */
	/*
	 * The time, as in a tuple, when these hooks began after others, or none, had run: what a socket
	 * remembers from before that may have changed unnoticed. 0: never.
	 */
	__u32 mark;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct revsk_config_value);
} revsk_config SEC(".maps");

static __always_inline struct revsk_config_value *current_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&revsk_config, &zero);
}

static __always_inline enum revsk_mode current_mode(void)
{
	struct revsk_config_value *cfg = current_config();

	return cfg ? cfg->mode : REVSK_MODE_STORAGE;
}

static __always_inline __u32 current_mark(void)
{
	struct revsk_config_value *cfg = current_config();

	return cfg ? cfg->mark : 0;
}

static __always_inline bool mode_has_storage(enum revsk_mode mode)
{
	return mode != REVSK_MODE_LEGACY;
}

static __always_inline bool mode_has_hash(enum revsk_mode mode)
{
	return mode != REVSK_MODE_STORAGE;
}

static __always_inline bool mode_has_both(enum revsk_mode mode)
{
	return mode == REVSK_MODE_DUAL || mode == REVSK_MODE_MIRROR;
}

/* Cookie of the host's network namespace; 0: the initial namespace of the kernel. */
volatile const __u64 cfg_host_netns_cookie = 0;
/* Translate in the host's network namespace only. */
volatile const bool cfg_host_netns_only = false;
/* Translate IPv4 (and v4-mapped) destinations. */
volatile const bool cfg_ipv4 = true;
/* Translate IPv6 destinations. */
volatile const bool cfg_ipv6 = true;
/* Look up NodePort and HostPort services by port when the address has no service. */
volatile const bool cfg_nodeport = true;
/* First and last port of the NodePort range, host byte order. */
volatile const __u16 cfg_nodeport_min = 30000;
volatile const __u16 cfg_nodeport_max = 32767;
/* Services are keyed by protocol, entries for any protocol being the fallback. */
volatile const bool cfg_protocol_differentiation = true;
/* Look for a service of any protocol where there is none of the protocol. */
volatile const bool cfg_any_protocol = true;
/* Reach external IPs and host ports through the service only if the address is this host's. */
volatile const bool cfg_external_ip_mitigation = true;
/* Reject, rather than leave untouched, what goes to a service without backends. */
volatile const bool cfg_reject_no_backend = true;
/* Session affinity by network namespace. */
volatile const bool cfg_session_affinity = true;
/* Ticks of the kernel per second, where the agent's affinity entries count those; 0: they count seconds. */
volatile const __u32 cfg_affinity_hz = 0;
/* Honour the skip entries of local-redirect services. */
volatile const bool cfg_local_redirect = true;
/* L7 load balancer services. */
volatile const bool cfg_l7 = true;
/* Leave the sockets of the health checker (SO_MARK 0x0d00) alone. */
volatile const bool cfg_health_check = false;
/*
 * The kernel has bpf_set_retval and bpf_get_retval (5.18): rejected calls report what went wrong,
 * and what another program has rejected is known.
 */
volatile const bool cfg_set_retval = false;
/* The kernel has bpf_skc_to_mptcp_sock (5.19) and MPTCP: connections of MPTCP sockets are known. */
volatile const bool cfg_mptcp = false;
/*
 * The verifier does not know on which values of a caller's stack a function depends that reads them by a
 * pointer (before 6.8): see ip_unknown in service.h.
 */
volatile const bool cfg_imprecise_verifier = true;
