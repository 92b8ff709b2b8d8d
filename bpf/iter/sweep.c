//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Which of the sockets that have entries in revsk_overflow still exist. */
#include "kernel_iter.h"
#include "tuple.h"

/* By cookie; 1: the socket has been seen. User space fills it with the sockets in question. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u64);
	__type(value, __u32);
} revsk_suspects SEC(".maps");

/* Over revsk_peers. */
SEC("iter/bpf_sk_storage_map") int mark_living(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct revsk_peers_value *v = ctx->value;
	__u64 cookie;
	__u32 *seen;

	if (!v)
		return 0;
	/* The cookie that the hooks have put there is the one in the keys of the chain. */
	cookie = v->cookie;
	if (!cookie)
		return 0;
	seen = bpf_map_lookup_elem(&revsk_suspects, &cookie);
	if (seen)
		*seen = 1;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
