/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The service, backend and related maps that a control plane owns, and lookups in them.
 * A load balancer's agent fills them; the programs only read (affinity apart). The layouts are
 * Cilium's, of maps that exist pinned on its nodes, so sizes and flags here serve only where a map
 * has to be created.
 *
 * Families differ in the maps' keys alone: callers work with endpoints and never see which.
 */
#pragma once

#include "config.h"
#include "endpoint.h"
#include "kernel.h"
#include "netns.h"
#include "sock_ref.h"

#define SCOPE_EXTERNAL 0
#define SCOPE_INTERNAL 1
#define PROTO_ANY 0

enum service_flags {
	SVC_EXTERNAL_IP = 1 << 0,
	SVC_NODE_PORT = 1 << 1,
	SVC_EXTERNAL_LOCAL = 1 << 2,
	SVC_HOST_PORT = 1 << 3,
	SVC_AFFINITY = 1 << 4,
	SVC_LOAD_BALANCER = 1 << 5,
	SVC_ROUTABLE = 1 << 6,
	SVC_SOURCE_RANGE = 1 << 7,
};

/* Reached from outside the cluster. */
#define SVC_EXTERNAL (SVC_NODE_PORT | SVC_EXTERNAL_IP | SVC_LOAD_BALANCER)

enum service_flags2 {
	SVC_LOCAL_REDIRECT = 1 << 0,
	SVC_NAT_46X64 = 1 << 1,
	SVC_L7_LOAD_BALANCER = 1 << 2,
	SVC_LOOPBACK = 1 << 3, /* of a host port */
	SVC_L7_DELEGATE = 1 << 3, /* of any other service */
	SVC_INTERNAL_LOCAL = 1 << 4,
	SVC_TWO_SCOPES = 1 << 5,
	SVC_QUARANTINED = 1 << 6,
};

/* The words of the keys are made with WORD_OF, see there. */
struct lb4_key {
	__be32 address;
	__u32 port_slot; /* __be16 port, __u16 slot; slot 0: the service itself */
	__u32 protocol_scope; /* __u8 protocol, __u8 scope, __u8 pad[2] */
};

struct lb6_key {
	union ip_addr address;
	__u32 port_slot;
	__u32 protocol_scope;
};

struct lb_service {
	/* What it says differs: read it by service_affinity_timeout, service_proxy_port of slot 0,
	 * slot_backend_id of the others.
	 */
	__u32 word;
	__u16 count;
	__be16 rev_nat_index;
	__u8 flags;
	__u8 flags2;
	__u16 quarantined_count;
};

struct lb4_backend {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 flags;
	__u16 cluster_id;
	__u8 zone;
	__u8 pad;
};

struct lb6_backend {
	union ip_addr address;
	__be16 port;
	__u8 protocol;
	__u8 flags;
	__u16 cluster_id;
	__u8 zone;
	__u8 pad;
};

struct lb4_affinity_key {
	__u64 client; /* cookie of the network namespace */
	__be16 rev_nat_index;
	__u8 netns_cookie; /* 1: client is a cookie */
	__u8 pad[5];
};

struct lb6_affinity_key {
	__u64 client;
	__u64 client_high;
	__be16 rev_nat_index;
	__u8 netns_cookie;
	__u8 pad[5];
};

struct lb_affinity_value {
	__u64 last_used; /* see affinity_now */
	__u32 backend_id;
	__u32 pad;
};

struct lb_affinity_match {
	__u32 backend_id;
	__be16 rev_nat_index;
	__u16 pad;
};

struct skip_lb4_key {
	__u64 netns_cookie;
	__be32 address;
	__be16 port;
	__u16 pad;
};

struct skip_lb6_key {
	__u64 netns_cookie;
	union ip_addr address;
	__u32 pad;
	__be16 port;
	__u16 pad2;
};

struct ipcache_key {
	__u32 prefix_len;
	__u16 cluster_id;
	__u8 pad;
	__u8 family; /* 1: IPv4, 2: IPv6 */
	union {
		struct {
			__be32 ip4;
			__u32 pad4[3];
		};
		union ip_addr ip6;
	};
};

struct ipcache_value {
	__u32 identity;
	__u8 tunnel[16];
	__u16 pad;
	__u8 key;
	__u8 flags;
};

_Static_assert(sizeof(struct lb4_key) == 12, "layout of cilium_lb4_services_v2");
_Static_assert(sizeof(struct lb6_key) == 24, "layout of cilium_lb6_services_v2");
_Static_assert(sizeof(struct lb_service) == 12, "layout of cilium_lb*_services_v2");
_Static_assert(sizeof(struct lb4_backend) == 12, "layout of cilium_lb4_backends_v3");
_Static_assert(sizeof(struct lb6_backend) == 24, "layout of cilium_lb6_backends_v3");
_Static_assert(sizeof(struct lb4_affinity_key) == 16, "layout of cilium_lb4_affinity");
_Static_assert(sizeof(struct lb6_affinity_key) == 24, "layout of cilium_lb6_affinity");
_Static_assert(sizeof(struct lb_affinity_value) == 16, "layout of cilium_lb*_affinity");
_Static_assert(sizeof(struct lb_affinity_match) == 8, "layout of cilium_lb_affinity_match");
_Static_assert(sizeof(struct skip_lb4_key) == 16, "layout of cilium_skip_lb4");
_Static_assert(sizeof(struct skip_lb6_key) == 32, "layout of cilium_skip_lb6");
_Static_assert(sizeof(struct ipcache_key) == 24, "layout of cilium_ipcache_v2");
_Static_assert(sizeof(struct ipcache_value) == 24, "layout of cilium_ipcache_v2");

#define LB_MAP(name, map_type, key_type, value_type, entries, flags)                               \
	struct {                                                                                   \
		__uint(type, map_type);                                                            \
		__uint(max_entries, entries);                                                      \
		__uint(map_flags, flags);                                                          \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

#define LB_RDONLY (BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG)

LB_MAP(cilium_lb4_services_v2, BPF_MAP_TYPE_HASH, struct lb4_key, struct lb_service, 65536,
       LB_RDONLY);
LB_MAP(cilium_lb6_services_v2, BPF_MAP_TYPE_HASH, struct lb6_key, struct lb_service, 65536,
       LB_RDONLY);
LB_MAP(cilium_lb4_backends_v3, BPF_MAP_TYPE_HASH, __u32, struct lb4_backend, 65536,
       BPF_F_NO_PREALLOC);
LB_MAP(cilium_lb6_backends_v3, BPF_MAP_TYPE_HASH, __u32, struct lb6_backend, 65536,
       BPF_F_NO_PREALLOC);
LB_MAP(cilium_lb4_affinity, BPF_MAP_TYPE_LRU_HASH, struct lb4_affinity_key,
       struct lb_affinity_value, 65536, 0);
LB_MAP(cilium_lb6_affinity, BPF_MAP_TYPE_LRU_HASH, struct lb6_affinity_key,
       struct lb_affinity_value, 65536, 0);
LB_MAP(cilium_lb_affinity_match, BPF_MAP_TYPE_HASH, struct lb_affinity_match, __u8, 65536,
       LB_RDONLY);
LB_MAP(cilium_skip_lb4, BPF_MAP_TYPE_HASH, struct skip_lb4_key, __u8, 100, LB_RDONLY);
LB_MAP(cilium_skip_lb6, BPF_MAP_TYPE_HASH, struct skip_lb6_key, __u8, 100, LB_RDONLY);
LB_MAP(cilium_ipcache_v2, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_key, struct ipcache_value, 512000,
       LB_RDONLY);

/* Which service: a frontend's address, port, protocol and scope. */
struct service_key {
	struct endpoint frontend;
	__u8 protocol;
	__u8 scope;
};

static __always_inline struct lb_service *service_entry(const struct service_key *k, __u16 slot)
{
	if (ip_is_v4(&k->frontend.addr)) {
		struct lb4_key key = {
			.address = ip_to_v4(&k->frontend.addr),
			.port_slot = WORD_OF(k->frontend.port, slot),
			.protocol_scope = WORD_OF(HALF_OF(k->protocol, k->scope), 0),
		};

		return bpf_map_lookup_elem(&cilium_lb4_services_v2, &key);
	} else {
		struct lb6_key key = {
			.address = k->frontend.addr,
			.port_slot = WORD_OF(k->frontend.port, slot),
			.protocol_scope = WORD_OF(HALF_OF(k->protocol, k->scope), 0),
		};

		return bpf_map_lookup_elem(&cilium_lb6_services_v2, &key);
	}
}

static __always_inline void service_key_first(struct service_key *k)
{
	k->scope = SCOPE_EXTERNAL;
	if (!cfg_protocol_differentiation)
		k->protocol = PROTO_ANY;
}

/* What most lookups find: the service of exactly this frontend, in the external scope. */
static __always_inline struct lb_service *service_lookup_first(struct service_key *k)
{
	service_key_first(k);
	return service_entry(k, 0);
}

/* If there is no service for the protocol, @svc being NULL, it may be for any. */
static __always_inline struct lb_service *service_or_any(struct service_key *k,
							 struct lb_service *svc)
{
	if (svc || !cfg_any_protocol || k->protocol == PROTO_ANY)
		return svc;
	k->protocol = PROTO_ANY;
	return service_entry(k, 0);
}

/*
 * Goes on from what service_lookup_first has found: NULL, and the service may be for any protocol, or
 * one that may have two scopes, and is looked up again in the internal one then.
 */
static __always_inline struct lb_service *service_lookup_next(struct service_key *k,
							      struct lb_service *svc)
{
	__u8 protocol = k->protocol;

	svc = service_or_any(k, svc);
	if (!svc || !(svc->flags2 & SVC_TWO_SCOPES))
		return svc;
	k->scope = SCOPE_INTERNAL;
	k->protocol = protocol;
	return service_or_any(k, service_entry(k, 0));
}

/*
 * The service of exactly this frontend, for the protocol or else for any; a service with two scopes
 * is looked up again in the internal one. Leaves in @k the key that was found. Inline, because one call
 * more would be too much for the stack on Linux 5.10, which rounds every frame up to 32 bytes.
 */
static __always_inline struct lb_service *service_lookup_exact(struct service_key *k)
{
	return service_lookup_next(k, service_lookup_first(k));
}

#define IDENTITY_HOST 1
#define IDENTITY_REMOTE_NODE 6
#define IDENTITY_API_SERVER_NODE 7 /* a remote node, too */
#define IDENTITY_SCOPE_REMOTE_NODE 2 /* the high byte of those of nodes that have one each */
#define IPCACHE_REMOTE_CLUSTER (1 << 3)

static __always_inline struct ipcache_value *ipcache_lookup(const union ip_addr *addr)
{
	struct ipcache_key key = {};

	if (ip_is_v4(addr)) {
		key.prefix_len = 32 + 32;
		key.family = 1;
		key.ip4 = ip_to_v4(addr);
	} else {
		key.prefix_len = 32 + 128;
		key.family = 2;
		key.ip6 = *addr;
	}
	return bpf_map_lookup_elem(&cilium_ipcache_v2, &key);
}

static __always_inline bool ip_is_host(const union ip_addr *addr)
{
	struct ipcache_value *v = ipcache_lookup(addr);

	return v && v->identity == IDENTITY_HOST;
}

static __always_inline bool identity_is_remote_node(__u32 identity)
{
	return identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_API_SERVER_NODE ||
	       identity >> 24 == IDENTITY_SCOPE_REMOTE_NODE;
}

static __always_inline bool ip_is_cluster_node(const union ip_addr *addr)
{
	struct ipcache_value *v = ipcache_lookup(addr);

	return v && (v->identity == IDENTITY_HOST || (identity_is_remote_node(v->identity) &&
						      !(v->flags & IPCACHE_REMOTE_CLUSTER)));
}

static __always_inline bool port_is_nodeport(__be16 port)
{
	__u16 p = bpf_ntohs(port);

	return p >= cfg_nodeport_min && p <= cfg_nodeport_max;
}

static __always_inline struct lb_service *service_lookup_any_address(struct service_key *k,
								     __u8 protocol)
{
	k->frontend.addr = ip_any(&k->frontend.addr);
	k->protocol = protocol;
	return service_lookup_exact(k);
}

/* The node whose address this is serves the port there: a NodePort on any node, others on this one. */
static __always_inline bool node_serves(struct sock_ref *s, const struct endpoint *frontend)
{
	if (ip_is_loopback(&frontend->addr) && netns_is_host(s))
		return true;
	return port_is_nodeport(frontend->port) ? ip_is_cluster_node(&frontend->addr)
						: ip_is_host(&frontend->addr);
}

/* A service of the unspecified address serves its port on this address, if it is one of a node. */
static __always_inline bool wildcard_serves(const struct lb_service *svc,
					    const struct endpoint *frontend)
{
	if (port_is_nodeport(frontend->port))
		return svc->flags & SVC_NODE_PORT;
	return (svc->flags & SVC_HOST_PORT) &&
	       (!(svc->flags2 & SVC_LOOPBACK) || ip_is_loopback(&frontend->addr));
}

/*
 * The NodePort or HostPort service that serves this port on addresses of the node, when no service
 * has the address itself. Both have to be so, the service and the address. The service is asked for
 * first: most ports have none, and the trie of a large cluster takes longer to answer than the hash
 * of the services.
 */
static __always_inline struct lb_service *
service_lookup_wildcard(struct sock_ref *s, struct service_key *k, __u8 protocol)
{
	const struct endpoint frontend = k->frontend;
	struct lb_service *svc;

	if (!cfg_nodeport)
		return NULL;
	svc = service_lookup_any_address(k, protocol);
	return svc && wildcard_serves(svc, &frontend) && node_serves(s, &frontend) ? svc : NULL;
}

/* Goes on from what service_lookup_first has found, as service_lookup_next does, to the wildcard. */
static __always_inline struct lb_service *
service_lookup_rest(struct sock_ref *s, struct service_key *k, struct lb_service *svc)
{
	__u8 protocol = k->protocol;

	svc = service_lookup_next(k, svc);
	return svc ? svc : service_lookup_wildcard(s, k, protocol);
}

static __noinline struct lb_service *
service_lookup_out_of_line(struct sock_ref *s, struct service_key *k, struct lb_service *svc)
{
	return service_lookup_rest(s, k, svc);
}

/*
 * A copy of an address of which the verifier knows nothing. Before Linux 6.8 it does not see that what a
 * function reads by a pointer into the stack of its caller may differ from one call to the next: having
 * followed the function with a v4-mapped address, whose prefix is a constant once it was compared with one,
 * it takes the branches for IPv6 for dead code, and removes them. So the address is mixed with a zero from
 * memory.
 */
static __always_inline union ip_addr ip_unknown(const union ip_addr *a,
						const struct revsk_config_value *cfg)
{
	__u64 zero = cfg->mode >> 8; /* no mode is that large */
	union ip_addr copy = { .halves = { a->halves[0] ^ zero,
					   a->halves[1] ^ LONG_OF(zero, zero) } };

	return copy;
}

/* service_lookup_rest where it is rare: the registers are left to what is not. */
static __always_inline struct lb_service *
service_lookup_rest_apart(struct sock_ref *s, struct service_key *k, struct lb_service *svc)
{
	/* A copy, so that the key of the others need not be in memory. */
	struct service_key found = *k;
	const struct revsk_config_value *cfg;

	if (cfg_imprecise_verifier) {
		cfg = current_config();
		if (!cfg)
			return NULL;
		found.frontend.addr = ip_unknown(&k->frontend.addr, cfg);
	}
	svc = service_lookup_out_of_line(s, &found, svc);
	k->protocol = found.protocol;
	k->scope = found.scope;
	/* By the wildcard. Made anew, for what the verifier knows of the former. */
	if (!ip_equal(&found.frontend.addr, &k->frontend.addr))
		k->frontend.addr = ip_any(&k->frontend.addr);
	return svc;
}

/* service_lookup_first has found all that there is to find. */
static __always_inline bool service_is_final(const struct lb_service *svc)
{
	return likely(svc) && likely(!(svc->flags2 & SVC_TWO_SCOPES));
}

/* The service that answers for this frontend. Leaves in @k the key that was found. */
static __always_inline struct lb_service *service_lookup(struct sock_ref *s, struct service_key *k)
{
	struct lb_service *svc = service_lookup_first(k);

	return service_is_final(svc) ? svc : service_lookup_rest_apart(s, k, svc);
}

/*
 * The same, going on from what service_lookup_first has found, where most frontends are no
 * service's: all inline, which is too much for the verifiers of old kernels.
 */
static __always_inline struct lb_service *
service_lookup_ordinary(struct sock_ref *s, struct service_key *k, struct lb_service *svc)
{
	if (service_is_final(svc))
		return svc;
	return cfg_imprecise_verifier ? service_lookup_rest_apart(s, k, svc)
				      : service_lookup_rest(s, k, svc);
}

/* Of a service with affinity: how long it lasts, in seconds. The high byte of the word is an algorithm. */
static __always_inline __u32 service_affinity_timeout(const struct lb_service *svc)
{
	return svc->word & 0xffffff;
}

/* Of an L7 service: the port of its proxy on this host; 0: it has none. */
static __always_inline __be16 service_proxy_port(const struct lb_service *svc)
{
	return (__be16)svc->word;
}

/* Of a slot of a service. */
static __always_inline __u32 slot_backend_id(const struct lb_service *slot)
{
	return slot->word;
}

static __always_inline bool service_is_l7(const struct lb_service *svc)
{
	return cfg_l7 && (svc->flags2 & SVC_L7_LOAD_BALANCER);
}

/* An L7 service whose proxy listens. */
static __always_inline bool service_has_proxy(const struct lb_service *svc)
{
	return service_is_l7(svc) && service_proxy_port(svc);
}

static __always_inline bool service_is_l7_delegate(const struct lb_service *svc)
{
	return (svc->flags2 & SVC_L7_DELEGATE) && !(svc->flags & SVC_HOST_PORT);
}

/* The traffic policy that is about such a service keeps its traffic on this node. */
static __always_inline bool service_is_local(const struct lb_service *svc)
{
	return svc->flags & SVC_EXTERNAL ? svc->flags & SVC_EXTERNAL_LOCAL
					 : svc->flags2 & SVC_INTERNAL_LOCAL;
}

/*
 * The address of a backend of the same family as @like; false if there is no such backend, or it has no
 * port: nothing can be sent there, and in slots and tables a port of 0 is what is free.
 */
static __always_inline bool backend_lookup(__u32 id, const union ip_addr *like,
					   struct endpoint *backend)
{
	if (ip_is_v4(like)) {
		struct lb4_backend *b = bpf_map_lookup_elem(&cilium_lb4_backends_v3, &id);

		if (!b)
			return false;
		backend->addr = ip_from_v4(b->address);
		backend->port = b->port;
	} else {
		struct lb6_backend *b = bpf_map_lookup_elem(&cilium_lb6_backends_v3, &id);

		if (!b)
			return false;
		backend->addr = b->address;
		backend->port = b->port;
	}
	return backend->port;
}
