/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sock_release: what the socket remembers is read back and deleted wherever else it is kept. The
 * kernel frees the storage itself (sk_storage_delete is not available to this hook on any kernel).
 *
 * The addresses of the socket are not looked at: the kernel has zeroed them if the socket was
 * aborted or disconnected. (The hash knows no other way, which is how its entries leak.)
 */
#pragma once

#include "revnat.h"

/* Deletes the chain's first tuple; false if there is none after it. */
static __noinline bool release_chain_step(struct revsk_peers_value *p, bool with_hash)
{
	struct revsk_overflow_value *v;
	struct revsk_overflow_key key;
	struct endpoint head;

	if (!p || !p->head_port)
		return false;
	head.addr = p->head;
	head.port = p->head_port;
	key = overflow_key(p->cookie, p->head, p->head_port);
	v = bpf_map_lookup_elem(&revsk_overflow, &key);
	if (!v) {
		p->head_port = 0;
		return false;
	}
	p->head = v->next;
	p->head_port = v->next_port;
	p->chain_len--;
	bpf_map_delete_elem(&revsk_overflow, &key);
	count(REVSK_OVERFLOW_REMOVED);
	if (with_hash)
		legacy_delete(key.cookie, &head);
	return p->head_port;
}

struct release_loop {
	struct revsk_peers_value *p;
	bool with_hash;
};

static long release_loop_step(__u32 i, struct release_loop *loop)
{
	return release_chain_step(loop->p, loop->with_hash) ? 0 : 1;
}

static __always_inline void release_chain_loop(struct revsk_peers_value *p, bool with_hash)
{
	struct release_loop loop = { .p = p, .with_hash = with_hash };

	bpf_loop(1 << 23, release_loop_step, &loop, 0);
}

/*
 * @dst is what the kernel has left of the destination. Only the hash is asked for it, for a socket
 * that has no storage.
 *
 * Returns the socket's peers if it has a chain, which is then the caller's to release: how depends
 * on the kernel.
 */
static __always_inline struct revsk_peers_value *revnat_release(struct sock_ref *s,
								const struct endpoint *dst)
{
	enum revsk_mode mode = current_mode();
	bool with_hash = mode_has_hash(mode);
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former = former_get(s, conn);
	struct revsk_peers_value *p = peers_get(s);
	struct endpoint peer;
	__u64 tuples = 0;

	/* In every mode: the storage may be from before the mode was switched. */
	if (former) {
		tuples++;
		if (with_hash) {
			peer = tuple_peer(&former->tuple);
			legacy_delete(sock_cookie(s), &peer);
		}
	}
	if (conn && conn->tuple.peer_port) {
		tuples++;
		if (!dst->port)
			count(REVSK_RELEASE_ZEROED);
		if (with_hash) {
			peer = tuple_peer(&conn->tuple);
			legacy_delete(sock_cookie(s), &peer);
		}
	}
	if (p) {
		tuples += p->chain_len;
#pragma unroll
		for (int i = 0; i < REVSK_SLOTS; i++) {
			if (!p->slots[i].peer_port)
				continue;
			tuples++;
			if (with_hash) {
				peer = tuple_peer(&p->slots[i]);
				legacy_delete(sock_cookie(s), &peer);
			}
		}
	}
	if (tuples)
		count_n(REVSK_RELEASED, tuples);
	if (mode == REVSK_MODE_LEGACY || (with_hash && !conn))
		legacy_delete(sock_cookie(s), dst);
	return p && p->chain_len ? p : NULL;
}
