/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* In the place of bpf/lib/older.h: the layout before is version 1. */
#pragma once

#include "next.h"

/* There are maps of the layout before, which may have values. */
volatile const bool cfg_older_layout = false;

/*
 * Stores @value in the map of this layout, and first deletes that of the layout before: the socket may have no memory for both.
 */
#define CARRY(name, sk, value, delete)                                                             \
	do {                                                                                       \
		if (delete)                                                                        \
			older_##name##_delete(sk);                                                 \
		bpf_sk_storage_get(&revsk_##name, sk, value, BPF_SK_STORAGE_GET_F_CREATE);         \
	} while (0)

static __always_inline void carry_all(void *sk, bool delete)
{
	struct revsk_former_value former = {};
	struct revsk_conn_value conn = {};
	typeof(older_former(NULL)) old_former = older_former(sk);
	typeof(older_conn(NULL)) old_conn = older_conn(sk);

	if (old_former) {
		former.tuple = old_former->tuple;
		CARRY(former, sk, &former, delete);
	}
	if (old_conn) {
		conn.tuple = old_conn->tuple;
		conn.bits = old_conn->bits;
		CARRY(conn, sk, &conn, delete);
	}
}

static __always_inline void carry_peers(void *sk, bool delete)
{
	typeof(older_peers(NULL)) old = older_peers(sk);
	struct revsk_peers_value peers = {};

	if (!old)
		return;
	peers.slots_tried = old->slots_tried;
	peers.has_conn = old->has_conn;
	peers.table_class = old->table_class;
	peers.table_maps = old->table_maps;
	peers.table_count = old->table_count;
	peers.table_version = old->table_version;
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		peers.slots[i] = old->slots[i];
	CARRY(peers, sk, &peers, delete);
}

/* Global, as of apart.h. */
__noinline int carry_hook(struct bpf_sock_addr *ctx)
{
	if (!ctx->sk)
		return 0;
	carry_all(ctx->sk, true);
	carry_peers(ctx->sk, true);
	return 0;
}

static __always_inline void carry_over(struct bpf_sock_addr *ctx)
{
	if (cfg_older_layout)
		carry_hook(ctx);
}

__noinline int carry_release(struct bpf_sock *ctx)
{
	carry_all(ctx, false);
	carry_peers(ctx, false);
	return 0;
}

static __always_inline void carry_over_release(struct bpf_sock *ctx)
{
	if (cfg_older_layout)
		carry_release(ctx);
}
