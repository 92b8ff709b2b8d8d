/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps and values of version 2, under the names by which bpf/lib knows them. */
#pragma once

#include "tuple.h"

/* Those of version 1, which have the same names. */
#define OLDER_MAP(name)                                                                            \
	static __always_inline struct revsk_##name##_value *older_##name(void *sk)                 \
	{                                                                                          \
		return bpf_sk_storage_get(&revsk_##name, sk, NULL, 0);                             \
	}                                                                                          \
	static __always_inline void older_##name##_delete(void *sk)                                \
	{                                                                                          \
		bpf_sk_storage_delete(&revsk_##name, sk);                                          \
	}

OLDER_MAP(conn)
OLDER_MAP(former)
OLDER_MAP(peers)

struct revsk_conn_value_v2 {
	struct revsk_tuple tuple;
	__u32 bits;
	struct bpf_spin_lock lock;
};

struct revsk_former_value_v2 {
	__u32 reserved;
	struct bpf_spin_lock lock;
	struct revsk_tuple tuple;
};

struct revsk_peers_value_v2 {
	__u8 slots_tried;
	__u8 has_conn;
	__u8 table_class;
	__u8 reserved[25];
	__u16 table_maps;
	__u16 table_count;
	struct bpf_spin_lock lock;
	__u32 table_version;
	struct revsk_tuple slots[REVSK_SLOTS];
};

#define NEXT_MAP(name)                                                                             \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                             \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__type(key, __u32);                                                                \
		__type(value, struct revsk_##name##_value_v2);                                     \
	} revsk_##name##_v2 SEC(".maps")

NEXT_MAP(conn);
NEXT_MAP(former);
NEXT_MAP(peers);

#define revsk_conn_value revsk_conn_value_v2
#define revsk_former_value revsk_former_value_v2
#define revsk_peers_value revsk_peers_value_v2
#define revsk_conn revsk_conn_v2
#define revsk_former revsk_former_v2
#define revsk_peers revsk_peers_v2
