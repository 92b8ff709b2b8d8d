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

/*
 * Deletes what the hash knows of the tuple at a position of a table. Returns 0, or -ENOENT if the table has
 * no such position.
 */
static __always_inline int release_tuple(struct sock_ref *s, __u32 number, __u64 position)
{
	struct table_ref r = table_numbered(s->sk, number);
	struct revsk_tuple *t;
	struct endpoint peer;

	if (!r.t || position >= (r.mask + 1) * TABLE_WAYS)
		return -ENOENT;
	t = table_at(r, position);
	if (!t->peer_port)
		return 0;
	peer = tuple_peer(t);
	legacy_delete(sock_cookie(s), &peer);
	return 0;
}

/* release_tuple of every position of a table: defined by the program, as a function of its own. */
static __always_inline void ctx_release_table(struct sock_ref *s, __u32 number);

static __always_inline void release_tables(struct sock_ref *s, const struct revsk_peers_value *p)
{
	if (p->table_class < TABLE_CLASSES) {
		ctx_release_table(s, TABLE_NUMBER(p->table_class));
		return;
	}
	for (int i = 0; i < TABLE_MAPS; i++)
		if (table_has_map(p, i))
			ctx_release_table(s, i);
}

/*
 * @dst is what the kernel has left of the destination. Only the hash is asked for it, for a socket
 * that has no storage.
 */
static __always_inline void revnat_release(struct sock_ref *s, const struct endpoint *dst)
{
	enum revsk_mode mode = current_mode();
	bool with_hash = mode_has_hash(mode);
	struct revsk_conn_value *conn = conn_get(s);
	struct revsk_former_value *former = former_get(s, conn);
	struct revsk_peers_value *p = peers_get(s);
	bool connected = conn && conn->tuple.peer_port;
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
	if (connected) {
		tuples++;
		if (!dst->port)
			count(REVSK_RELEASE_ZEROED);
		if (with_hash) {
			peer = tuple_peer(&conn->tuple);
			legacy_delete(sock_cookie(s), &peer);
		}
	}
	if (p) {
		tuples += p->table_count;
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
	/* In mode mirror a socket without storage has nothing in the hash. */
	if (mode == REVSK_MODE_LEGACY ||
	    (with_hash && !connected && (conn || p || mode == REVSK_MODE_DUAL)))
		legacy_delete(sock_cookie(s), dst);
	if (with_hash && p && p->table_class)
		release_tables(s, p);
}
