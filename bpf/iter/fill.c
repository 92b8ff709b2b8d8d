//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Fills socket storage from the hash. User space puts the entries of the hash into an array, sorted by
 * socket, and has these programs visit the sockets. import.h moves an entry and says what has become
 * of it; the programs differ in how they come to a socket with its lock held:
 *
 * - fill_tcp and fill_udp reach every socket that is in the protocols' tables of one network
 *   namespace, whoever holds it. iter/udp takes the lock of the socket since Linux 6.5.
 * - fill_descriptor reaches a socket by one of its file descriptors, on every kernel: it is a
 *   setsockopt hook, which the kernel runs under the lock. User space puts a request into the
 *   storage of the socket, and calls setsockopt with a level of its own for each entry.
 *   Other processes may share the descriptor and make the same calls, at any time. Hence a call
 *   counts only if it is by the thread that note_caller has noted and has the secret of the
 *   request, and it can only be about an entry of the very socket that the request is for.
 *
 *   Before it grow_descriptor, on the same hook, makes room in the table of the socket. That is a program of
 *   its own, because the verifier would walk it in each of the others.
 *
 * find_files says which sockets are in a file table, and where: those in no protocol table
 * (disconnected datagram sockets, UDP-Lite), and those whose table has to grow, are left to fill_descriptor.
 */
#include "kernel_iter.h"
#include "import.h"

/* For bpf2go, which generates the Go side of the types that the programs use. */
const enum revsk_result *unused_result __attribute__((unused));
const enum revsk_seen *unused_seen __attribute__((unused));
const struct revsk_call *unused_call __attribute__((unused));

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

/* Put into the storage of a socket while it is visited by descriptor. */
struct revsk_request {
	__u64 cookie; /* of the socket */
	__u64 nonce;
	__u32 served; /* calls that fill_descriptor has done its work for */
	__u32 pad;
};

/* The value of the socket option. */
struct revsk_call {
	__u64 nonce;
	__u32 index; /* of an entry, among those of the socket */
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_call) == 16, "revsk_call is 16 bytes");

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

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct revsk_request);
} revsk_requests SEC(".maps");

/*
 * The thread whose calls of setsockopt count, as the kernel has it: a number of a process would
 * depend on the namespace, and hooks cannot ask for it on every kernel. 0: none.
 */
__u64 revsk_caller = 0;

/* Entries that have been judged, for who wants to watch. */
__u64 revsk_judged = 0;

/* Sockets in a table that had no room for one of their entries. */
__u64 revsk_without_room = 0;

/* How often find_files has met a socket that is left to fill_descriptor. */
__u64 revsk_files_only = 0;

/* Wanted by sock_ref.h; every sock_ref here has its cookie, and no rule asks for a namespace. */
static __always_inline __u64 ctx_socket_cookie(void *ctx)
{
	return 0;
}

static __always_inline __u32 ctx_time(void)
{
	return tuple_time(bpf_ktime_get_ns());
}

/* An import never evicts what hooks wrote, and so makes nothing of it older. */
static __always_inline bool ctx_may_evict(void)
{
	return false;
}

/*
 * The iterators that write do not, or the verifier would walk each use of a table for each of its maps: they
 * have no context in their sock_ref. What that is about is left to fill_descriptor.
 */
static __always_inline bool ctx_has_tables(struct sock_ref *s)
{
	return s->ctx;
}

static __always_inline int ctx_table_position(struct sock_ref *s, const struct endpoint *peer)
{
	return table_position(s, peer);
}

/* Out of line for the verifier, as what follows does not depend on which table it was. */
static __noinline int ctx_table_remove(struct sock_ref *s, const struct endpoint *peer)
{
	return peer ? table_remove(s, peer) : -ENOENT;
}

static __always_inline __u64 ctx_bucket_choose(struct sock_ref *s, __u32 number, __u32 bucket)
{
	const struct endpoint none = {};

	return bucket_choose(s->sk, number, bucket, &none, false);
}

/* What only grow_descriptor does, and what an import never does. */

static __always_inline int ctx_table_make_room(struct sock_ref *s, __u32 hash)
{
	return -ENOENT;
}

static __always_inline int ctx_table_evict(struct sock_ref *s, __u32 hash, __u32 position)
{
	return -ENOENT;
}

static __always_inline __u64 ctx_table_way_out(struct sock_ref *s, __u32 number, __u32 position)
{
	return table_way_out(s->sk, number, position);
}

static __always_inline int ctx_table_move(struct sock_ref *s, __u32 number, __u32 from, __u32 to)
{
	return table_move(s->sk, peers_get(s), number, from, to);
}

__noinline int grow_double_part(struct bpf_sockopt *ctx, __u32 class, __u32 first)
{
	return ctx->sk ? table_double_part(ctx->sk, class, first) : -ENOENT;
}

static __always_inline int ctx_table_double_part(struct sock_ref *s, __u32 class, __u32 first)
{
	return grow_double_part(s->ctx, class, first);
}

__noinline int grow_split_part(struct bpf_sockopt *ctx, __u32 number, __u32 depth, __u32 first)
{
	return ctx->sk ? table_split_part(ctx->sk, number, depth, first) : -ENOENT;
}

static __always_inline int ctx_table_split_part(struct sock_ref *s, __u32 number, __u32 depth,
						__u32 first)
{
	return grow_split_part(s->ctx, number, depth, first);
}

static __always_inline bool ctx_legacy_is_newer(struct sock_ref *s, const struct endpoint *peer)
{
	return legacy_is_newer(s, peer);
}

static __always_inline __u64 ctx_netns_cookie(void *ctx)
{
	return 0;
}

static __always_inline __u64 ctx_host_netns_cookie(void)
{
	return 0;
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

/* Run by the caller itself, by BPF_PROG_TEST_RUN. */
SEC("raw_tp") int note_caller(void *ctx)
{
	revsk_caller = bpf_get_current_task();
	return 0;
}

/* A level that no protocol has: "revs". */
#define REQUEST_LEVEL 0x72657673

/* What a call that counts is about. */
struct call {
	struct revsk_import_socket *socket;
	struct revsk_request *request;
	__u32 entry;
};

/* Whether the call is one of those that fill_descriptor is for. */
static __always_inline bool call_counts(struct bpf_sockopt *ctx, struct call *c)
{
	struct revsk_call *call = ctx->optval;

	/*
	 * Of a longer value programs have the first page only, and the kernel refuses the call unless
	 * one of them says by 0 that it is to take the application's own.
	 */
	if (ctx->optlen > ctx->optval_end - ctx->optval)
		ctx->optlen = 0;
	if (ctx->level != REQUEST_LEVEL || !ctx->sk || bpf_get_current_task() != revsk_caller)
		return false;
	if ((void *)(call + 1) > ctx->optval_end)
		return false;
	c->request = bpf_sk_storage_get(&revsk_requests, ctx->sk, NULL, 0);
	if (!c->request || c->request->nonce != call->nonce)
		return false;
	/* The kernel's own code has nothing to do. */
	ctx->optlen = -1;
	c->socket = bpf_map_lookup_elem(&revsk_import_sockets, &c->request->cookie);
	if (!c->socket || call->index >= c->socket->count)
		return false;
	c->entry = c->socket->first + call->index;
	return true;
}

/* Before fill_descriptor, about the same entry: makes room for it if the socket is out of slots. */
SEC("cgroup/setsockopt") int grow_descriptor(struct bpf_sockopt *ctx)
{
	struct sock_ref s = { .ctx = ctx };
	struct revsk_import_entry *e;
	struct revsk_peers_value *p;
	struct call c;
	__u32 hash;

	if (!call_counts(ctx, &c))
		return 1;
	s.sk = ctx->sk;
	e = bpf_map_lookup_elem(&revsk_import, &c.entry);
	p = peers_get(&s);
	if (!e || !p || (e->result != REVSK_RESULT_NOT_MET && e->result != REVSK_RESULT_NO_ROOM))
		return 1;
#pragma unroll
	for (int i = 0; i < REVSK_SLOTS; i++)
		if (!p->slots[i].peer_port)
			return 1;
	hash = hash_words(e->peer.halves[0], e->peer.halves[1], e->peer_port);
	if (table_choose(&s, p, hash) >= TABLE_TAKEN)
		table_make_room(&s, hash);
	return 1;
}

SEC("cgroup/setsockopt") int fill_descriptor(struct bpf_sockopt *ctx)
{
	struct endpoint actual;
	struct call c;

	if (!call_counts(ctx, &c))
		return 1;
	actual = sock_peer(ctx->sk);
	c.socket->family = (__u16)ctx->sk->family;
	c.socket->protocol = (__u8)ctx->sk->protocol;
	c.socket->seen |= REVSK_SEEN_FILE;
	/* What has a descriptor is no subflow. */
	fill_one(ctx, ctx->sk, c.request->cookie, &actual, (__u8)ctx->sk->protocol, false, c.entry);
	c.request->served++;
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
