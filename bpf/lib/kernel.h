/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The part of the kernel's interface that the programs use, kept by hand: a full dump of the
 * kernel's types is 3 MB of which this is all that matters.
 *
 * Context structs (bpf_sock_addr, bpf_sock) are the UAPI's: the verifier rewrites
 * accesses to them, so they carry no CO-RE relocations.
 */
#pragma once

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/*
 * What is written in small parts and read as a whole soon after makes the processor wait until the
 * parts have left its store buffer: longer than a lookup takes to find something. So keys of maps,
 * which the kernel hashes by words, and addresses are put together in registers.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define WORD_OF(first, second) ((__u16)(first) | (__u32)(__u16)(second) << 16)
#define HALF_OF(first, second) ((__u16)(__u8)(first) | (__u16)(__u8)(second) << 8)
#define LONG_OF(first, second) ((__u32)(first) | (__u64)(__u32)(second) << 32)
#else
#define WORD_OF(first, second) ((__u32)(__u16)(first) << 16 | (__u16)(second))
#define HALF_OF(first, second) ((__u16)(__u8)(first) << 8 | (__u8)(second))
#define LONG_OF(first, second) ((__u64)(__u32)(first) << 32 | (__u32)(second))
#endif

#define likely(x) __builtin_expect(!!(x), 1)

/* What was read from memory is read again where it is needed after this. */
#define forget_memory() asm volatile("" : : : "memory")

#define AF_INET 2
#define AF_INET6 10

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_UDPLITE 136

#define SOL_SOCKET 1
#define SO_MARK 36

#define ENOENT 2
#define ENOMEM 12
#define EINVAL 22
#define EADDRINUSE 98
#define ENOBUFS 105
#define EHOSTUNREACH 113

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_SK_STORAGE = 24,
};

/* Flags of map creation. */
enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_F_RDONLY_PROG = 1U << 7,
};

/* Flags of map updates. */
enum {
	BPF_ANY = 0,
};

enum {
	BPF_SK_STORAGE_GET_F_CREATE = 1U << 0,
};

#define __bpf_md_ptr(type, name)                                                                   \
	union {                                                                                    \
		type name;                                                                         \
		__u64 : 64;                                                                        \
	} __attribute__((aligned(8)))

/* Found by the kernel by this name in the BTF of a map's value. */
struct bpf_spin_lock {
	__u32 val;
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port; /* host byte order */
	/* Network byte order. Declared as the 4 bytes that kernels before 5.18 had: a 4-byte load
	 * gives the port in its low half on every kernel and in both byte orders.
	 */
	__u32 dst_port;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	__bpf_md_ptr(struct bpf_sock *, sk);
};

struct bpf_sockopt {
	__bpf_md_ptr(struct bpf_sock *, sk);
	__bpf_md_ptr(void *, optval);
	__bpf_md_ptr(void *, optval_end);
	__s32 level;
	__s32 optname;
	__s32 optlen;
	__s32 retval;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
