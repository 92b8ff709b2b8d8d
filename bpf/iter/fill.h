/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs that fill socket storage from the hash have in common. User space puts the entries of the
 * hash into an array, sorted by socket, and has these programs visit the sockets. import.h moves an entry and
 * says what has become of it; the programs differ in how they come to a socket with its lock held:
 *
 * - those of fill.c reach every socket that is in the protocols' tables of one network namespace, whoever
 *   holds it, on kernels whose iterators take the lock;
 * - those of descriptor.c reach a socket by one of its file descriptors, on every kernel.
 */
#pragma once

#include "kernel_iter.h"
#include "import.h"

/* Where a program has met a socket. */
enum revsk_seen {
	REVSK_SEEN_TABLE = 1 << 0, /* in the table of its protocol */
	REVSK_SEEN_FILE = 1 << 1, /* in the file table of a process */
	REVSK_SEEN_WITHOUT_ROOM =
		1 << 2, /* in a table, where there was no room for one of its entries */
};

/* A socket that has entries. */
struct revsk_import_socket {
	__u32 first; /* of its entries */
	__u32 count;
	__u32 pid; /* of the process that find_files saw it with; 0: none */
	__u32 fd;
	__u16 family;
	__u8 protocol; /* of MPTCP, which is 262, TCP's */
	__u8 seen; /* REVSK_SEEN_* */
	__u8 pad[4];
};

_Static_assert(sizeof(struct revsk_import_socket) == 24, "revsk_import_socket is 24 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u32);
	__type(value, struct revsk_import_entry);
} revsk_import SEC(".maps");

/* By cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* user space decides */
	__type(key, __u64);
	__type(value, struct revsk_import_socket);
} revsk_import_sockets SEC(".maps");

/* Entries that have been judged, for who wants to watch. */
__u64 revsk_judged = 0;

/* Wanted by sock_ref.h and service.h. No rule that is about an import asks for a namespace or a verdict. */
static __always_inline __u32 ctx_time(void)
{
	return tuple_time(bpf_ktime_get_ns());
}

static __always_inline bool ctx_is_rejected(void)
{
	return false;
}

static __always_inline __u64 ctx_netns_cookie(void *ctx)
{
	return 0;
}

static __always_inline __u64 ctx_host_netns_cookie(void)
{
	return 0;
}

static __always_inline enum revsk_result fill_one(void *ctx, void *sk, __u64 cookie,
						  const struct endpoint *actual, __u8 protocol,
						  bool subflow, __u32 index)
{
	struct sock_ref s = { .ctx = ctx, .sk = sk, .cookie = cookie };
	struct revsk_import_entry *e = bpf_map_lookup_elem(&revsk_import, &index);
	struct revsk_peers_value *p;

	/* Once: another visit would find what this one has stored. */
	if (!e || (e->result != REVSK_RESULT_NOT_MET && e->result != REVSK_RESULT_NO_ROOM))
		return REVSK_RESULT_NOT_MET;
	if (e->result == REVSK_RESULT_NOT_MET)
		__sync_fetch_and_add(&revsk_judged, 1);
	p = peers_get(&s);
	if (p && p->table_class && !ctx_has_tables(&s)) {
		e->result = REVSK_RESULT_NO_ROOM;
		return e->result;
	}
	e->result = (__u8)import_entry(&s, e, actual, protocol, subflow);
	return e->result;
}
