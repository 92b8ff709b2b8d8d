/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Addresses and ports. One format for both families: IPv4 is kept as v4-mapped IPv6
 * (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2), so that dual-stack sockets need no special case.
 */
#pragma once

#include "kernel.h"

union ip_addr {
	__u8 bytes[16];
	__be32 words[4];
	__u64 halves[2];
};

_Static_assert(sizeof(union ip_addr) == 16, "ip_addr is 16 bytes");

struct endpoint {
	union ip_addr addr;
	__be16 port;
};

#define V4_MAPPED_PREFIX bpf_htonl(0x0000ffff)

static __always_inline union ip_addr ip_from_v4(__be32 v4)
{
	union ip_addr a = { .halves = { 0, LONG_OF(V4_MAPPED_PREFIX, v4) } };

	return a;
}

static __always_inline bool ip_is_v4(const union ip_addr *a)
{
	return a->words[2] == V4_MAPPED_PREFIX && a->halves[0] == 0;
}

static __always_inline __be32 ip_to_v4(const union ip_addr *a)
{
	return a->words[3];
}

static __always_inline bool ip_equal(const union ip_addr *a, const union ip_addr *b)
{
	return a->halves[1] == b->halves[1] && a->halves[0] == b->halves[0];
}

static __always_inline bool endpoint_equal(const struct endpoint *a, const struct endpoint *b)
{
	return a->port == b->port && ip_equal(&a->addr, &b->addr);
}

static __always_inline bool ip_is_loopback(const union ip_addr *a)
{
	if (ip_is_v4(a))
		return (a->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->halves[0] == 0 && a->words[2] == 0 && a->words[3] == bpf_htonl(1);
}

/* The loopback address of the family of @a. */
static __always_inline union ip_addr ip_loopback(const union ip_addr *a)
{
	union ip_addr six = { .words = { 0, 0, 0, bpf_htonl(1) } };

	return ip_is_v4(a) ? ip_from_v4(bpf_htonl(0x7f000001)) : six;
}

/* The unspecified address of the family of @a. */
static __always_inline union ip_addr ip_any(const union ip_addr *a)
{
	union ip_addr six = {};

	return ip_is_v4(a) ? ip_from_v4(0) : six;
}
