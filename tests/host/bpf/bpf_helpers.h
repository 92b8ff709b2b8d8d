/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * In the place of libbpf's header: the helpers that bpf/lib uses, as functions of this machine. Values of maps are
 * on the heap, each by itself, so that the address sanitizer sees what is read or written beside them.
 */
#pragma once

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define SEC(name) __attribute__((used))

#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))

void *host_lookup(const void *map, const void *key, __u64 key_size, __u64 value_size, int is_array);
long host_update(const void *map, const void *key, const void *value, __u64 key_size,
		 __u64 value_size, __u64 flags);
long host_delete(const void *map, const void *key, __u64 key_size);
void *host_storage_get(const void *map, const void *sk, const void *value, __u64 size, __u64 flags);
long host_storage_delete(const void *map, const void *sk);
struct bpf_sock *host_socket(const void *packet, int is_tcp);
void host_socket_release(struct bpf_sock *sk);
void host_lock(struct bpf_spin_lock *lock);
void host_unlock(struct bpf_spin_lock *lock);
__u64 host_random(void);

/* The length of the array that __uint declares is the number. */
#define HOST_UINT(field) (sizeof(*(field)) / sizeof(int))
#define HOST_IS_ARRAY(map)                                                                         \
	(HOST_UINT((map)->type) == BPF_MAP_TYPE_ARRAY ||                                           \
	 HOST_UINT((map)->type) == BPF_MAP_TYPE_PERCPU_ARRAY)

#define bpf_map_lookup_elem(map, key_)                                                             \
	host_lookup(map, key_, sizeof(*(map)->key), sizeof(*(map)->value), HOST_IS_ARRAY(map))
#define bpf_map_update_elem(map, key_, value_, flags)                                              \
	host_update(map, key_, value_, sizeof(*(map)->key), sizeof(*(map)->value), flags)
#define bpf_map_delete_elem(map, key_) host_delete(map, key_, sizeof(*(map)->key))
#define bpf_sk_storage_get(map, sk, value_, flags)                                                 \
	host_storage_get(map, sk, value_, sizeof(*(map)->value), flags)
#define bpf_sk_storage_delete(map, sk) host_storage_delete(map, sk)
#define bpf_sk_lookup_tcp(ctx, packet, size, netns, flags) host_socket(packet, 1)
#define bpf_sk_lookup_udp(ctx, packet, size, netns, flags) host_socket(packet, 0)
#define bpf_sk_release(sk) host_socket_release(sk)
#define bpf_spin_lock(lock) host_lock(lock)
#define bpf_spin_unlock(lock) host_unlock(lock)
#define bpf_ktime_get_ns() host_random()
#define bpf_jiffies64() host_random()
#define bpf_get_prandom_u32() ((__u32)host_random())
#define bpf_get_netns_cookie(ctx) (1)
#define bpf_get_socket_cookie(ctx) (1)
#define bpf_set_retval(retval) (0)
