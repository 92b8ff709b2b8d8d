//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Fills socket storage from the hash in the iterators over the protocols' tables: see fill.h. fill_udp takes the
 * lock of a socket since Linux 6.5.
 *
 * find_files says which sockets are in a file table, and where: those in no protocol table (disconnected
 * datagram sockets, UDP-Lite), and those whose table has to grow, are left to descriptor.c.
 */
#include "fill.h"

/* For bpf2go, which generates the Go side of the types that the programs use. */
const enum revsk_result *unused_result __attribute__((unused));
const enum revsk_seen *unused_seen __attribute__((unused));

/* Sockets in a table that had no room for one of their entries. */
__u64 revsk_without_room = 0;

/* How often find_files has met a socket that is left to fill_descriptor. */
__u64 revsk_files_only = 0;

/* Every sock_ref here has its cookie. */
static __always_inline __u64 ctx_socket_cookie(void *ctx)
{
	return 0;
}

/*
 * The verifier would walk each use of a table for each of its maps, and there is no context that a function of
 * its own could have (apart.h). What a table is wanted for is left to descriptor.c.
 */
static __always_inline bool ctx_has_tables(struct sock_ref *s)
{
	return false;
}

static __always_inline bool ctx_may_evict(void)
{
	return false;
}

/* So these are never called. */
#define WITHOUT_TABLES(type, name, ...)                                                            \
	static __always_inline type name(struct sock_ref *s, __VA_ARGS__)                          \
	{                                                                                          \
		return -ENOENT;                                                                    \
	}

WITHOUT_TABLES(int, ctx_table_position, const struct endpoint *peer)
WITHOUT_TABLES(int, ctx_table_remove, const struct endpoint *peer)
WITHOUT_TABLES(__u64, ctx_bucket_choose, __u32 number, __u32 bucket)
WITHOUT_TABLES(__u64, ctx_table_way_out, __u32 number, __u32 position)
WITHOUT_TABLES(int, ctx_table_move, __u32 number, __u32 from, __u32 to)
WITHOUT_TABLES(int, ctx_table_double_part, __u32 class, __u32 first)
WITHOUT_TABLES(int, ctx_table_split_part, __u32 number, __u32 depth, __u32 first)
WITHOUT_TABLES(int, ctx_table_make_room, __u32 hash)
WITHOUT_TABLES(int, ctx_table_evict, __u32 hash, __u32 position)

static __always_inline bool ctx_legacy_is_newer(struct sock_ref *s, const struct endpoint *peer)
{
	return legacy_is_newer(s, peer);
}

struct fill_loop {
	void *sk;
	__u64 cookie;
	struct endpoint actual;
	__u32 first;
	__u8 protocol;
	bool subflow; /* see REVSK_TUPLE_SUBFLOW */
	bool without_room; /* set by fill_step */
};

static long fill_step(__u32 i, struct fill_loop *loop)
{
	/* What is added now the release hook may not find, nor remove. */
	if (is_closed(loop->sk))
		return 1;
	if (fill_one(NULL, loop->sk, loop->cookie, &loop->actual, loop->protocol, loop->subflow,
		     loop->first + i) == REVSK_RESULT_NO_ROOM)
		loop->without_room = true;
	return 0;
}

/* @c and @sk are the same socket; the programs come by it as pointers of different types. */
static __always_inline void fill_entries(void *sk, const struct sock_common *c, __u8 protocol,
					 bool subflow, struct revsk_import_socket *found)
{
	struct fill_loop loop = {
		.sk = sk,
		.cookie = c->skc_cookie.counter,
		.actual = actual_peer(c),
		.first = found->first,
		.protocol = protocol,
		.subflow = subflow,
	};

	bpf_loop(found->count, fill_step, &loop, 0);
	if (loop.without_room) {
		found->seen |= REVSK_SEEN_WITHOUT_ROOM;
		__sync_fetch_and_add(&revsk_without_room, 1);
	}
}

static __always_inline int fill_from_table(void *sk, const struct sock_common *c, __u8 protocol,
					   bool subflow)
{
	__u64 cookie = c->skc_cookie.counter; /* 0: it has none, so no entries */
	struct revsk_import_socket *found;

	if (!cookie)
		return 0;
	found = bpf_map_lookup_elem(&revsk_import_sockets, &cookie);
	if (!found)
		return 0;
	found->family = c->skc_family;
	found->protocol = protocol;
	found->seen |= REVSK_SEEN_TABLE;
	fill_entries(sk, c, protocol, subflow, found);
	return 0;
}

SEC("iter/tcp") int fill_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_sock *tcp;

	if (!c)
		return 0;
	/* NULL for what is not a whole socket: TIME_WAIT, requests. */
	tcp = bpf_skc_to_tcp_sock(c);
	if (!tcp || is_closed((struct sock *)tcp))
		return 0;
	return fill_from_table(c, c, IPPROTO_TCP,
			       bpf_core_field_exists(tcp->is_mptcp) && tcp->is_mptcp);
}

SEC("iter/udp") int fill_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;

	if (!udp || is_closed(&udp->inet.sk))
		return 0;
	return fill_from_table(udp, &udp->inet.sk.__sk_common, (__u8)udp->inet.sk.sk_protocol,
			       false);
}

SEC("iter/task_file") int find_files(struct bpf_iter__task_file *ctx)
{
	struct revsk_import_socket *found;
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;
	__u64 cookie;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	if (!cookie)
		return 0;
	found = bpf_map_lookup_elem(&revsk_import_sockets, &cookie);
	if (!found)
		return 0;
	found->family = sk->__sk_common.skc_family;
	found->protocol = (__u8)sk->sk_protocol;
	found->pid = task->tgid;
	found->fd = ctx->fd;
	found->seen |= REVSK_SEEN_FILE;
	if (!(found->seen & REVSK_SEEN_TABLE) || (found->seen & REVSK_SEEN_WITHOUT_ROOM))
		__sync_fetch_and_add(&revsk_files_only, 1);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
