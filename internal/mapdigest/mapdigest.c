//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A sum over the values of a map, which changes when one comes, goes or changes. */
#include "kernel.h"

struct bpf_iter_meta;
struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(void *, key);
	__bpf_md_ptr(void *, value);
} __attribute__((preserve_access_index));

struct revsk_digest {
	__u64 sum; /* of a hash of each value: their order does not matter */
	__u64 count;
};

_Static_assert(sizeof(struct revsk_digest) == 16, "revsk_digest is 16 bytes");

/* User space zeroes it before each run. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct revsk_digest);
} revsk_digests SEC(".maps");

/* The finalizer of MurmurHash3. */
static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ (h >> 33);
}

/* Any odd number with half of its bits. */
#define FACTOR 0x9e3779b97f4a7c15ULL

static __always_inline void add(struct revsk_digest *d, const __u32 *value, int words)
{
	__u64 h = words;

#pragma unroll
	for (int i = 0; i < words; i++)
		h = h * FACTOR + value[i];
	d->sum += mix(h);
	d->count++;
}

/* The kernel compares what a program reads with the size of the map's values: hence a program for each. */
static __always_inline int digest(struct bpf_iter__bpf_map_elem *ctx, int words)
{
	const __u32 *value = ctx->value;
	__u32 zero = 0;
	struct revsk_digest *d = bpf_map_lookup_elem(&revsk_digests, &zero);

	if (value && d)
		add(d, value, words);
	return 0;
}

SEC("iter/bpf_map_elem") int digest_count(struct bpf_iter__bpf_map_elem *ctx)
{
	return digest(ctx, 0);
}

SEC("iter/bpf_map_elem") int digest_12(struct bpf_iter__bpf_map_elem *ctx)
{
	return digest(ctx, 3);
}

SEC("iter/bpf_map_elem") int digest_24(struct bpf_iter__bpf_map_elem *ctx)
{
	return digest(ctx, 6);
}

/* The same in half of the time, where the kernel can (Linux 5.14). User space puts the map here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 12);
} revsk_digested SEC(".maps");

static long each_12(void *map, const void *key, const __u32 *value, struct revsk_digest *d)
{
	add(d, value, 3);
	return 0;
}

static long each_24(void *map, const void *key, const __u32 *value, struct revsk_digest *d)
{
	add(d, value, 6);
	return 0;
}

static __always_inline int digest_all(void *each)
{
	struct revsk_digest sum = {};
	__u32 zero = 0;

	bpf_for_each_map_elem(&revsk_digested, each, &sum, 0);
	bpf_map_update_elem(&revsk_digests, &zero, &sum, BPF_ANY);
	return 0;
}

SEC("syscall") int digest_all_12(void *ctx)
{
	return digest_all(each_12);
}

SEC("syscall") int digest_all_24(void *ctx)
{
	return digest_all(each_24);
}

/* Linux 6.6. */
extern __s64 bpf_map_sum_elem_count(const struct bpf_map *map) __ksym;

/* Only the kernel's count, whatever the size of the map. */
SEC("syscall") int digest_entries(void *ctx)
{
	return (int)bpf_map_sum_elem_count((const struct bpf_map *)&revsk_digested);
}

char _license[] SEC("license") = "Dual BSD/GPL";
