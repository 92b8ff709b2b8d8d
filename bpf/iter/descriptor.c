//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Fills socket storage from the hash by descriptor: see fill.h. fill_descriptor is a setsockopt hook, which the
 * kernel runs under the lock of the socket. User space puts a request into the storage of the socket, and calls
 * setsockopt with a level of its own for each entry. Other processes may share the descriptor and make the same
 * calls, at any time. Hence a call counts only if it is by the thread that note_caller has noted and has the
 * secret of the request, and it can only be about an entry of the very socket that the request is for.
 *
 * Before it grow_descriptor, on the same hook, makes room in the table of the socket.
 */
#define APART_CTX struct bpf_sockopt
#define apart_socket(ctx) ((ctx)->sk)
#define apart_done(sk)
/* An import never evicts what hooks wrote, and so makes nothing of it older. */
#define APART_MAY_EVICT false

#include "fill.h"
#include "apart.h"

/* For bpf2go, which generates the Go side of the types that the programs use. */
const struct revsk_call *unused_call __attribute__((unused));

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
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct revsk_request);
} revsk_requests SEC(".maps");

static __always_inline __u64 ctx_socket_cookie(void *ctx)
{
	const struct bpf_sockopt *call = ctx;
	struct revsk_request *request = bpf_sk_storage_get(&revsk_requests, call->sk, NULL, 0);

	return request ? request->cookie : 0;
}

/*
 * The thread whose calls of setsockopt count, as the kernel has it: a number of a process would
 * depend on the namespace, and hooks cannot ask for it on every kernel. 0: none.
 */
__u64 revsk_caller = 0;

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
