//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The cgroup entry points. The rules are in bpf/lib: lb.h chooses, revnat.h remembers. */
/* For apart.h. */
#define APART_CTX struct bpf_sock_addr
#define apart_socket(ctx) ((ctx)->sk)
#define apart_done(sk)
#define APART_MAY_EVICT true

#include "apart.h"
#include "bind.h"
#include "config.h"
#include "hook.h"
#include "lb.h"
#include "older.h"
#include "release.h"
#include "revnat.h"

/* For bpf2go, which generates the Go side of the types that the programs use. */
const enum revsk_mode *unused_mode __attribute__((unused));
const enum revsk_metric *unused_metric __attribute__((unused));

/* The health checker wants the backend that it asks for, and a socket without its mark. */
static __always_inline bool health_check(struct bpf_sock_addr *ctx)
{
	int none = 0;

	if (!cfg_health_check || !ctx->sk || ctx->sk->mark != HEALTH_CHECK_MARK ||
	    ctx_is_rejected())
		return false;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &none, sizeof(none));
	return true;
}

static __always_inline int finish(struct bpf_sock_addr *ctx, const struct revsk_tuple *t, int err,
				  bool v6)
{
	const struct endpoint backend = tuple_peer(t);

	if (err) {
		count(REVSK_REJECTED_NO_MEMORY);
		/* A constant: Linux 7.2 wants to know that it is an error. */
		return reject(-ENOMEM);
	}
	hook_set_address(ctx, &backend, v6);
	count(REVSK_TRANSLATED);
	return HOOK_PROCEED;
}

static __always_inline int unreachable(void)
{
	if (ctx_is_rejected())
		return HOOK_PROCEED;
	count(REVSK_REJECTED_NO_BACKEND);
	return reject(-EHOSTUNREACH);
}

/* The socket is a TCP connection of an MPTCP socket: the kernel's, which runs no hook when it releases it. */
static __always_inline bool is_subflow(struct bpf_sock *sk)
{
	return cfg_mptcp && bpf_skc_to_mptcp_sock(sk);
}

static __always_inline int connect(struct bpf_sock_addr *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx->sk };
	const struct endpoint dst = hook_address(ctx, v6);
	bool datagram = ctx->protocol != IPPROTO_TCP;
	struct revsk_conn_value new = {};
	__u64 choice = LB_UNTRANSLATED;
	bool health;

	if (!s.sk)
		return HOOK_PROCEED;
	carry_over(ctx);
	health = health_check(ctx);
	if (!translatable(ctx->protocol))
		return HOOK_PROCEED;
	if (!health)
		choice = lb_choose(&s, &dst, ctx->protocol, v6);
	if (choice == LB_UNTRANSLATED) {
		revnat_connect_direct(&s, &dst, datagram);
		return HOOK_PROCEED;
	}
	if (choice == LB_UNREACHABLE || !lb_tuple(choice, &dst, &new.tuple))
		return unreachable();
	if (!datagram && is_subflow(s.sk))
		new.tuple.flags |= REVSK_TUPLE_SUBFLOW;
	return finish(ctx, &new.tuple, revnat_connect(&s, &new, datagram), v6);
}

/*
 * A send() without an address, of a connected socket: for an IPv4 address on an IPv6 socket the
 * kernel runs the hook then, too, with the address of the peer. That is the backend that a connect
 * has chosen, or what the application connected to before there was a service: in neither case is
 * it to be translated, as it is not on an IPv4 socket. (An application that gives that very address
 * itself looks the same.)
 */
static __always_inline bool sends_to_own_peer(struct bpf_sock_addr *ctx, const struct endpoint *dst)
{
	struct endpoint peer;

	if (!ip_is_v4(&dst->addr) || ctx->family != AF_INET6)
		return false;
	peer = sock_peer(ctx->sk);
	return endpoint_equal(&peer, dst);
}

static __always_inline int sendmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx->sk };
	const struct endpoint dst = hook_address(ctx, v6);
	__u64 choice = LB_UNTRANSLATED;
	struct revsk_peers_value *p;
	struct revsk_tuple t = {};

	if (!s.sk)
		return HOOK_PROCEED;
	carry_over(ctx);
	p = peers_get(&s);
	if (!sends_to_own_peer(ctx, &dst))
		choice = lb_choose(&s, &dst, ctx->protocol, v6);
	if (choice == LB_UNTRANSLATED) {
		revnat_sendmsg_direct(&s, p, &dst);
		return HOOK_PROCEED;
	}
	if (choice == LB_UNREACHABLE || !lb_tuple(choice, &dst, &t))
		return unreachable();
	return finish(ctx, &t, revnat_sendmsg(&s, p, &t), v6);
}

static __always_inline int recvmsg(struct bpf_sock_addr *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx->sk };
	const struct endpoint src = hook_address(ctx, v6);
	struct endpoint service = {};

	carry_over(ctx);
	if (s.sk && revnat_source(&s, &src, ctx->protocol, &service)) {
		hook_set_address(ctx, &service, v6);
		count(REVSK_REVERSED);
	}
	return HOOK_PROCEED;
}

static __always_inline int getpeername(struct bpf_sock_addr *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx->sk };
	const struct endpoint peer = hook_address(ctx, v6);
	struct endpoint service = {};

	carry_over(ctx);
	if (s.sk && revnat_peername(&s, &peer, ctx->protocol, &service)) {
		hook_set_address(ctx, &service, v6);
		count(REVSK_REVERSED);
	}
	return HOOK_PROCEED;
}

/* Global, as of hook.h. */
__noinline int hook_release_tuple(struct bpf_sock *ctx, __u32 number, __u32 position)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx };

	return release_tuple(&s, number, position);
}

__noinline int hook_release_table(struct bpf_sock *ctx, __u32 number)
{
	for (int i = 0; i < TABLE_TUPLES(TABLE_CLASSES); i++)
		if (hook_release_tuple(ctx, number, i))
			break;
	return 0;
}

static __always_inline void ctx_release_table(struct sock_ref *s, __u32 number)
{
	hook_release_table(s->ctx, number);
}

static __always_inline int release(struct bpf_sock *ctx)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx };
	const struct endpoint dst = sock_peer(ctx);

	carry_over_release(ctx);
	revnat_release(&s, &dst);
	return HOOK_PROCEED;
}

/* bind of a health checker: its address is remembered for the checker, the socket gets any. */
static __always_inline int bind(struct bpf_sock_addr *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx->sk };
	const struct endpoint local = hook_address(ctx, v6);
	struct endpoint any = {};
	int err;

	if (!s.sk || s.sk->mark != HEALTH_CHECK_MARK || !translatable(ctx->protocol) ||
	    !netns_is_host(&s))
		return HOOK_PROCEED;
	err = health_bind(&s, &local, ctx->protocol);
	if (err)
		return reject(err);
	any.addr = ip_any(&local.addr);
	hook_set_address(ctx, &any, v6);
	return HOOK_PROCEED;
}

/* A context of either family has the address of that family only. */
static __always_inline int post_bind(struct bpf_sock *ctx, bool v6)
{
	struct sock_ref s = { .ctx = ctx, .sk = ctx };
	struct endpoint local = { .port = bpf_htons(ctx->src_port) };

	if (!translatable(ctx->protocol) || !netns_is_host(&s))
		return HOOK_PROCEED;
	if (v6) {
		local.addr.words[0] = ctx->src_ip6[0];
		local.addr.words[1] = ctx->src_ip6[1];
		local.addr.words[2] = ctx->src_ip6[2];
		local.addr.words[3] = ctx->src_ip6[3];
	} else {
		local.addr = ip_from_v4(ctx->src_ip4);
	}
	return bind_would_hijack(&s, &local, ctx->protocol) ? reject(-EADDRINUSE) : HOOK_PROCEED;
}

#define SOCK_ADDR_PROGRAMS(hook)                                                                   \
	SEC("cgroup/" #hook "4") int revsk_##hook##4(struct bpf_sock_addr * ctx)                   \
	{                                                                                          \
		return hook(ctx, false);                                                           \
	}                                                                                          \
	SEC("cgroup/" #hook "6") int revsk_##hook##6(struct bpf_sock_addr * ctx)                   \
	{                                                                                          \
		return hook(ctx, true);                                                            \
	}

SOCK_ADDR_PROGRAMS(connect)
SOCK_ADDR_PROGRAMS(sendmsg)
SOCK_ADDR_PROGRAMS(recvmsg)
SOCK_ADDR_PROGRAMS(getpeername)
SOCK_ADDR_PROGRAMS(bind)

SEC("cgroup/post_bind4") int revsk_post_bind4(struct bpf_sock *ctx)
{
	return post_bind(ctx, false);
}

SEC("cgroup/post_bind6") int revsk_post_bind6(struct bpf_sock *ctx)
{
	return post_bind(ctx, true);
}

SEC("cgroup/sock_release") int revsk_release(struct bpf_sock *ctx)
{
	return release(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
