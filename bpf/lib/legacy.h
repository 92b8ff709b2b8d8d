/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The state that socket storage replaces: one LRU hash per family, keyed by socket cookie and
 * backend. Kept for the modes legacy and dual; layout and behaviour are Cilium's.
 */
#pragma once

#include "metrics.h"
#include "service.h"
#include "sock_ref.h"
#include "tuple.h"

struct reverse4_key {
	__u64 cookie;
	__be32 address;
	__u32 port; /* __be16 port, __u16 pad: see WORD_OF */
};

struct reverse4_value {
	__be32 address;
	__be16 port;
	__be16 rev_nat_index;
};

struct reverse6_key {
	__u64 cookie;
	union ip_addr address;
	__u32 port; /* __be16 port, __u16 pad: see WORD_OF */
	__u32 pad;
};

/* Not aligned for 8-byte access: 20 bytes. */
struct reverse6_value {
	__be32 address[4];
	__be16 port;
	__be16 rev_nat_index;
};

_Static_assert(sizeof(struct reverse4_key) == 16, "layout of cilium_lb4_reverse_sk");
_Static_assert(sizeof(struct reverse4_value) == 8, "layout of cilium_lb4_reverse_sk");
_Static_assert(sizeof(struct reverse6_key) == 32, "layout of cilium_lb6_reverse_sk");
_Static_assert(sizeof(struct reverse6_value) == 20, "layout of cilium_lb6_reverse_sk");

LB_MAP(cilium_lb4_reverse_sk, BPF_MAP_TYPE_LRU_HASH, struct reverse4_key, struct reverse4_value,
       262144, 0);
LB_MAP(cilium_lb6_reverse_sk, BPF_MAP_TYPE_LRU_HASH, struct reverse6_key, struct reverse6_value,
       262144, 0);

static __always_inline struct reverse4_key reverse4_key(__u64 cookie, const struct endpoint *peer)
{
	struct reverse4_key key = {
		.cookie = cookie,
		.address = ip_to_v4(&peer->addr),
		.port = WORD_OF(peer->port, 0),
	};

	return key;
}

static __always_inline struct reverse6_key reverse6_key(__u64 cookie, const struct endpoint *peer)
{
	struct reverse6_key key = {
		.cookie = cookie,
		.address = peer->addr,
		.port = WORD_OF(peer->port, 0),
	};

	return key;
}

/* Returns 0 or -ENOMEM. An entry that says the same already is not written again. */
static __always_inline int legacy_store(__u64 cookie, const struct revsk_tuple *t)
{
	const struct endpoint peer = tuple_peer(t);
	long err = 0;

	if (ip_is_v4(&t->peer)) {
		struct reverse4_key key = reverse4_key(cookie, &peer);
		struct reverse4_value new = {
			.address = ip_to_v4(&t->service),
			.port = t->service_port,
			.rev_nat_index = t->rev_nat_index,
		};
		struct reverse4_value *old = bpf_map_lookup_elem(&cilium_lb4_reverse_sk, &key);

		if (!old || old->address != new.address || old->port != new.port ||
		    old->rev_nat_index != new.rev_nat_index)
			err = bpf_map_update_elem(&cilium_lb4_reverse_sk, &key, &new, BPF_ANY);
	} else {
		struct reverse6_key key = reverse6_key(cookie, &peer);
		struct reverse6_value new = {
			.port = t->service_port,
			.rev_nat_index = t->rev_nat_index,
		};
		struct reverse6_value *old = bpf_map_lookup_elem(&cilium_lb6_reverse_sk, &key);

		__builtin_memcpy(new.address, t->service.words, sizeof(new.address));
		if (!old || __builtin_memcmp(old, &new, sizeof(new)))
			err = bpf_map_update_elem(&cilium_lb6_reverse_sk, &key, &new, BPF_ANY);
	}
	return err ? -ENOMEM : 0;
}

/* As legacy_store. In mode mirror the socket can do without the hash: what that does not take is counted. */
static __noinline int hash_store(struct sock_ref *s, const struct revsk_tuple *t,
				 enum revsk_mode mode)
{
	int err;

	if (!t)
		return -EINVAL;
	err = legacy_store(sock_cookie(s), t);
	if (!err || mode != REVSK_MODE_MIRROR)
		return err;
	count(REVSK_HASH_NOT_WRITTEN);
	return 0;
}

/* Fills @t with what the hash knows of @peer; false if it knows nothing. */
static __always_inline bool legacy_find(__u64 cookie, const struct endpoint *peer,
					struct revsk_tuple *t)
{
	if (ip_is_v4(&peer->addr)) {
		struct reverse4_key key = reverse4_key(cookie, peer);
		struct reverse4_value *v = bpf_map_lookup_elem(&cilium_lb4_reverse_sk, &key);

		if (!v)
			return false;
		t->service = ip_from_v4(v->address);
		t->service_port = v->port;
		t->rev_nat_index = v->rev_nat_index;
	} else {
		struct reverse6_key key = reverse6_key(cookie, peer);
		struct reverse6_value *v = bpf_map_lookup_elem(&cilium_lb6_reverse_sk, &key);

		if (!v)
			return false;
		__builtin_memcpy(t->service.words, v->address, sizeof(v->address));
		t->service_port = v->port;
		t->rev_nat_index = v->rev_nat_index;
	}
	t->peer = peer->addr;
	t->peer_port = peer->port;
	return true;
}

/* Returns whether there was an entry. */
static __always_inline bool legacy_delete(__u64 cookie, const struct endpoint *peer)
{
	if (ip_is_v4(&peer->addr)) {
		struct reverse4_key key = reverse4_key(cookie, peer);

		return !bpf_map_delete_elem(&cilium_lb4_reverse_sk, &key);
	} else {
		struct reverse6_key key = reverse6_key(cookie, peer);

		return !bpf_map_delete_elem(&cilium_lb6_reverse_sk, &key);
	}
}
