//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * One program for each function of bpf/lib that a hook calls, run by BPF_PROG_TEST_RUN. A program
 * takes its arguments from the variable input, calls the function on a socket of the test, which it finds
 * as the kernel finds the receiver of a packet, and leaves what came of it in output.
 */
#include "kernel.h"
#include "kernel_skb.h"

/* For apart.h. A function of its own has no socket but what it finds. */
#define APART_CTX struct __sk_buff
#define apart_socket(ctx) find_socket(ctx)
#define apart_done(sk) bpf_sk_release(sk)
#define APART_MAY_EVICT true

static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb);

#include "apart.h"
#include "bind.h"
#include "lb.h"
#include "release.h"
#include "revnat.h"

struct harness_endpoint {
	union ip_addr addr;
	__be16 port;
	__u16 pad[3];
};

_Static_assert(sizeof(struct bpf_sock_tuple) == 36, "a packet is 36 bytes");

struct harness_input {
	__u64 run; /* number of this run, from 1 */

	/* Which socket: the packet that it would receive, a struct bpf_sock_tuple. */
	__u8 packet[36];
	__u8 packet_is_v6;
	__u8 packet_is_tcp;
	__u8 pad[2];

	/* What the kernel's helpers would say of it. */
	__u64 socket_cookie;
	__u64 netns_cookie;
	__u64 host_netns_cookie;

	/* Arguments; which ones depends on the function. */
	struct revsk_tuple tuple;
	struct harness_endpoint address;
	__u8 protocol;
	__u8 datagram;
	__u8 rejected; /* by another program */
	__u8 pad2[5];
};

struct harness_output {
	__u64 run; /* the run that has written this */
	__s64 result; /* what the function returned */
	__u64 cookie_asked; /* how often the socket's cookie was asked for */
	struct revsk_tuple tuple;
	struct harness_endpoint address;
	struct lb_service service;
	__u8 protocol;
	__u8 scope;
	__u8 pad[2];
};

struct harness_input input;
struct harness_output output;
/* What the clock shows: the time at which the tuple of the input is to be made. */
__u32 clock;

/* For bpf2go, which generates the Go side of the types that the programs use. */
const enum revsk_mode *unused_mode __attribute__((unused));
const enum revsk_metric *unused_metric __attribute__((unused));

static __always_inline __u64 ctx_socket_cookie(void *ctx)
{
	output.cookie_asked++;
	return input.socket_cookie;
}

static __always_inline __u64 ctx_netns_cookie(void *ctx)
{
	return input.netns_cookie;
}

static __always_inline __u64 ctx_host_netns_cookie(void)
{
	return input.host_netns_cookie;
}

static __always_inline __u32 ctx_time(void)
{
	return clock;
}

static __always_inline bool ctx_is_rejected(void)
{
	return input.rejected;
}

static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb)
{
	struct bpf_sock_tuple *packet = (struct bpf_sock_tuple *)input.packet;
	__u32 size = input.packet_is_v6 ? sizeof(packet->ipv6) : sizeof(packet->ipv4);

	if (input.packet_is_tcp)
		return bpf_sk_lookup_tcp(skb, packet, size, BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(skb, packet, size, BPF_F_CURRENT_NETNS, 0);
}

__noinline int harness_release_tuple(struct __sk_buff *skb, __u32 number, __u32 position)
{
	struct sock_ref s = { .ctx = skb, .sk = find_socket(skb) };
	int err;

	if (!s.sk)
		return -ENOENT;
	err = release_tuple(&s, number, position);
	bpf_sk_release(s.sk);
	return err;
}

__noinline int harness_release_table(struct __sk_buff *skb, __u32 number)
{
	for (int i = 0; i < TABLE_TUPLES(TABLE_CLASSES); i++)
		if (harness_release_tuple(skb, number, i))
			break;
	return 0;
}

static __always_inline void ctx_release_table(struct sock_ref *s, __u32 number)
{
	harness_release_table(s->ctx, number);
}

static __always_inline struct endpoint input_address(void)
{
	struct endpoint ep = {
		.addr = input.address.addr,
		.port = input.address.port,
	};

	return ep;
}

static __always_inline void output_address(const struct endpoint *ep)
{
	output.address.addr = ep->addr;
	output.address.port = ep->port;
}

/* What the test sees if no program has run. */
enum {
	NO_SOCKET = 0,
	DONE = 1,
	DONE_BEFORE = 2,
};

/*
 * False if this run has been done. Kernels before 5.11 report a run that a signal has interrupted
 * only after it is complete, and the caller starts it again.
 */
static __always_inline bool first_time(void)
{
	if (output.run == input.run)
		return false;
	__builtin_memset(&output, 0, sizeof(output));
	output.run = input.run;
	clock = input.tuple.time;
	return true;
}

/* A program that runs test_NAME on the socket that the input describes. */
#define SOCKET_PROGRAM(name)                                                                       \
	SEC("tc") int run_##name(struct __sk_buff *skb)                                            \
	{                                                                                          \
		struct sock_ref s = { .ctx = skb };                                                \
                                                                                                   \
		if (!first_time())                                                                 \
			return DONE_BEFORE;                                                        \
		s.sk = find_socket(skb);                                                           \
		if (!s.sk)                                                                         \
			return NO_SOCKET;                                                          \
		output.result = test_##name(&s);                                                   \
		bpf_sk_release(s.sk);                                                              \
		return DONE;                                                                       \
	}

/* The same on the socket that BPF_PROG_TEST_RUN makes for the run and frees after it. */
#define RUNS_OWN_SOCKET_PROGRAM(name)                                                              \
	SEC("tc") int run_##name##_own(struct __sk_buff *skb)                                      \
	{                                                                                          \
		struct sock_ref s = { .ctx = skb, .sk = skb->sk };                                 \
                                                                                                   \
		if (!first_time())                                                                 \
			return DONE_BEFORE;                                                        \
		if (!s.sk)                                                                         \
			return NO_SOCKET;                                                          \
		output.result = test_##name(&s);                                                   \
		return DONE;                                                                       \
	}

/* revnat.h */

static __always_inline long test_connect(struct sock_ref *s)
{
	struct revsk_conn_value new = { .tuple = input.tuple };

	return revnat_connect(s, &new, input.datagram);
}

static __always_inline long test_connect_direct(struct sock_ref *s)
{
	const struct endpoint dst = input_address();

	revnat_connect_direct(s, &dst, input.datagram);
	return 0;
}

static __always_inline long test_sendmsg(struct sock_ref *s)
{
	struct revsk_tuple t = input.tuple;

	return revnat_sendmsg(s, peers_get(s), &t);
}

static __always_inline long test_sendmsg_direct(struct sock_ref *s)
{
	const struct endpoint dst = input_address();

	revnat_sendmsg_direct(s, peers_get(s), &dst);
	return 0;
}

static __always_inline long test_source(struct sock_ref *s)
{
	const struct endpoint src = input_address();
	struct endpoint service = {};
	bool known = revnat_source(s, &src, input.protocol, &service);

	output_address(&service);
	return known;
}

/* Out of line, for the stack of the program that calls test_connect, too. */
static __noinline long test_peername(struct sock_ref *s)
{
	const struct endpoint peer = input_address();
	struct endpoint service = {};
	bool known = revnat_peername(s, &peer, input.protocol, &service);

	output_address(&service);
	return known;
}

SOCKET_PROGRAM(connect)
SOCKET_PROGRAM(connect_direct)
SOCKET_PROGRAM(sendmsg)
SOCKET_PROGRAM(sendmsg_direct)
SOCKET_PROGRAM(source)
SOCKET_PROGRAM(peername)
RUNS_OWN_SOCKET_PROGRAM(peername)
RUNS_OWN_SOCKET_PROGRAM(source)

/* Two calls in one run, which is how long the run's own socket lives. */
static __always_inline long test_connect_peername(struct sock_ref *s)
{
	long err = test_connect(s);

	return err ? err : test_peername(s);
}

static __always_inline long test_sendmsg_source(struct sock_ref *s)
{
	long err = test_sendmsg(s);

	return err ? err : test_source(s);
}

RUNS_OWN_SOCKET_PROGRAM(connect_peername)
RUNS_OWN_SOCKET_PROGRAM(sendmsg_source)

/* release.h */

static __always_inline long test_release(struct sock_ref *s)
{
	const struct endpoint dst = input_address();

	revnat_release(s, &dst);
	return 0;
}

SOCKET_PROGRAM(release)

/* peers.h */

static __always_inline long test_find(struct sock_ref *s)
{
	struct revsk_peers_value *p = peers_get(s);
	const struct endpoint peer = input_address();
	struct revsk_tuple *t = p ? peers_find(s, p, &peer) : NULL;

	if (!t)
		return false;
	output.tuple = *t;
	return true;
}

SOCKET_PROGRAM(find)

/*
 * Writes conn and slot with the tuple of the input and, every other time, with another service for
 * the same peer. Run many times in a row it leaves a reader hardly a moment between two writes.
 */
SEC("tc") int run_flip(struct __sk_buff *skb)
{
	struct sock_ref s = { .ctx = skb };
	struct revsk_conn_value conn = { .tuple = input.tuple };
	struct revsk_tuple t = input.tuple;

	if (output.result++ & 1) {
		t.service.halves[0] = ~t.service.halves[0];
		t.service.halves[1] = ~t.service.halves[1];
		t.service_port = ~t.service_port;
		t.rev_nat_index = ~t.rev_nat_index;
		t.backend_id = ~t.backend_id;
		t.time = ~t.time;
		conn.tuple = t;
	}
	s.sk = find_socket(skb);
	if (!s.sk)
		return NO_SOCKET;
	clock = t.time;
	revnat_sendmsg(&s, peers_get(&s), &t);
	/* As of a stream socket: else the tuple of the slot would go. */
	revnat_connect(&s, &conn, false);
	bpf_sk_release(s.sk);
	return DONE;
}

/* legacy.h */

/* Whether the entry for the peer of the tuple is another one after it was stored. */
static __always_inline long test_legacy_store(struct sock_ref *s)
{
	const struct revsk_tuple t = input.tuple;
	const struct endpoint peer = tuple_peer(&t);
	void *before, *after;

	if (ip_is_v4(&peer.addr)) {
		struct reverse4_key key = reverse4_key(sock_cookie(s), &peer);

		before = bpf_map_lookup_elem(&cilium_lb4_reverse_sk, &key);
		if (legacy_store(sock_cookie(s), &t))
			return -ENOMEM;
		after = bpf_map_lookup_elem(&cilium_lb4_reverse_sk, &key);
	} else {
		struct reverse6_key key = reverse6_key(sock_cookie(s), &peer);

		before = bpf_map_lookup_elem(&cilium_lb6_reverse_sk, &key);
		if (legacy_store(sock_cookie(s), &t))
			return -ENOMEM;
		after = bpf_map_lookup_elem(&cilium_lb6_reverse_sk, &key);
	}
	return (__u64)before != (__u64)after;
}

SOCKET_PROGRAM(legacy_store)

/* lb.h and service.h */

static __always_inline long test_lb_select(struct sock_ref *s)
{
	const struct endpoint dst = input_address();
	__u64 choice = lb_choose(s, &dst, input.protocol, true);
	struct revsk_tuple t = {};

	if (choice == LB_UNTRANSLATED)
		return false;
	if (choice == LB_UNREACHABLE || !lb_tuple(choice, &dst, &t))
		return -EHOSTUNREACH;
	output.tuple = t;
	return true;
}

static __always_inline long test_service_stands(struct sock_ref *s)
{
	const struct endpoint service = tuple_service(&input.tuple);

	return service_stands(s, &service, input.tuple.rev_nat_index, input.protocol);
}

static __always_inline long test_service_lookup(struct sock_ref *s)
{
	struct service_key key = {
		.frontend = input_address(),
		.protocol = input.protocol,
	};
	struct lb_service *svc = service_lookup(s, &key);

	if (!svc)
		return false;
	output.service = *svc;
	output_address(&key.frontend);
	output.protocol = key.protocol;
	output.scope = key.scope;
	return true;
}

SOCKET_PROGRAM(lb_select)
SOCKET_PROGRAM(service_stands)
SOCKET_PROGRAM(service_lookup)

/* bind.h */

static __always_inline long test_bind_would_hijack(struct sock_ref *s)
{
	const struct endpoint local = input_address();

	return bind_would_hijack(s, &local, input.protocol);
}

static __always_inline long test_health_bind(struct sock_ref *s)
{
	const struct endpoint local = input_address();

	return health_bind(s, &local, input.protocol);
}

SOCKET_PROGRAM(bind_would_hijack)
SOCKET_PROGRAM(health_bind)

char _license[] SEC("license") = "Dual BSD/GPL";
