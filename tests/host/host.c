// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs of tests/prog on this machine, under the sanitizers of the compiler: random calls on some sockets, with
 * memory that now and then runs out. What the address sanitizer and the undefined-behaviour sanitizer find ends it;
 * what the verifier promises of locks is asserted. Arguments: the number of calls, and a seed.
 */
#include "../prog/harness.c"

extern int printf(const char *format, ...);
extern int fflush(void *stream);
extern void abort(void);
extern void *calloc(unsigned long n, unsigned long size);
extern void free(void *p);
extern long atol(const char *s);
extern int memcmp(const void *a, const void *b, unsigned long n);
extern void *memcpy(void *to, const void *from, unsigned long n);

#define SOCKETS 4
#define ENTRIES 512
/* Of these for arrays, which are never full. */
#define RESERVED 64

#define must(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);             \
			fflush(NULL);                                                              \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static struct entry {
	const void *map;
	void *key, *value;
} entries[ENTRIES];

static struct storage {
	const void *map;
	void *value;
} storage[SOCKETS][40];

static struct bpf_sock sockets[SOCKETS];
static int current, found;
static struct bpf_spin_lock *locked;
static __u64 seed = 1;
static bool memory_is_short;

__u64 host_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static __u32 below(__u32 n)
{
	return (host_random() >> 33) % n;
}

/* Helpers are not called with a lock held: the verifier refuses that. */
static bool no_memory(void)
{
	must(!locked);
	return memory_is_short && !below(8);
}

void host_lock(struct bpf_spin_lock *lock)
{
	must(!locked && !lock->val);
	lock->val = 1;
	locked = lock;
}

void host_unlock(struct bpf_spin_lock *lock)
{
	must(locked == lock && lock->val == 1);
	lock->val = 0;
	locked = NULL;
}

static struct entry *entry_of(const void *map, const void *key, __u64 size)
{
	for (int i = 0; i < ENTRIES; i++)
		if (entries[i].map == map && !memcmp(entries[i].key, key, size))
			return &entries[i];
	return NULL;
}

long host_update(const void *map, const void *key, const void *value, __u64 key_size,
		 __u64 value_size, __u64 flags)
{
	struct entry *e = entry_of(map, key, key_size);

	if (no_memory())
		return -ENOMEM;
	for (int i = value ? RESERVED : 0; !e && i < ENTRIES; i++) {
		if (!entries[i].map) {
			e = &entries[i];
			e->map = map;
			e->key = calloc(1, key_size);
			e->value = calloc(1, value_size);
			memcpy(e->key, key, key_size);
		}
	}
	if (!e)
		return -ENOMEM;
	if (value)
		memcpy(e->value, value, value_size);
	return 0;
}

void *host_lookup(const void *map, const void *key, __u64 key_size, __u64 value_size, int is_array)
{
	struct entry *e = entry_of(map, key, key_size);
	bool short_before = memory_is_short;

	must(!locked);
	if (!e && is_array) {
		memory_is_short = false;
		must(!host_update(map, key, NULL, key_size, value_size, 0));
		memory_is_short = short_before;
		e = entry_of(map, key, key_size);
	}
	return e ? e->value : NULL;
}

long host_delete(const void *map, const void *key, __u64 key_size)
{
	struct entry *e = entry_of(map, key, key_size);

	must(!locked);
	if (!e)
		return -ENOENT;
	free(e->key);
	free(e->value);
	*e = (struct entry){};
	return 0;
}

static int number_of(const void *sk)
{
	int n = (const struct bpf_sock *)sk - sockets;

	must(n >= 0 && n < SOCKETS);
	return n;
}

void *host_storage_get(const void *map, const void *sk, const void *value, __u64 size, __u64 flags)
{
	struct storage *all = storage[number_of(sk)], *unused = NULL;

	must(!locked);
	for (int i = 0; i < 40; i++) {
		if (all[i].map == map)
			return all[i].value;
		if (!all[i].map)
			unused = &all[i];
	}
	if (!(flags & BPF_SK_STORAGE_GET_F_CREATE) || no_memory())
		return NULL;
	must(unused);
	unused->map = map;
	unused->value = calloc(1, size);
	if (value)
		memcpy(unused->value, value, size);
	return unused->value;
}

long host_storage_delete(const void *map, const void *sk)
{
	struct storage *all = storage[number_of(sk)];

	must(!locked);
	for (int i = 0; i < 40; i++) {
		if (all[i].map == map) {
			free(all[i].value);
			all[i] = (struct storage){};
			return 0;
		}
	}
	return -ENOENT;
}

struct bpf_sock *host_socket(const void *packet, int is_tcp)
{
	must(!locked);
	found++;
	return &sockets[current];
}

void host_socket_release(struct bpf_sock *sk)
{
	must(!locked && sk == &sockets[current] && found > 0);
	found--;
}

static union ip_addr address(__u8 net, __u32 n)
{
	union ip_addr a = {};

	if (n & 1) {
		a.bytes[0] = 0xfd;
		a.bytes[1] = net;
	} else {
		a.bytes[10] = a.bytes[11] = 0xff;
		a.bytes[12] = net;
	}
	a.bytes[14] = n >> 8;
	a.bytes[15] = n;
	return a;
}

/* An endpoint of few, so that they meet; rarely anything. */
static void endpoint_of(union ip_addr *addr, __be16 *port, __u8 net, __u32 amount)
{
	__u32 n = below(amount);

	*addr = address(net, n);
	*port = bpf_htons(53 + n % 7);
	if (!below(50))
		addr->halves[1] = host_random();
	if (!below(50))
		*port = host_random();
}

static int (*const programs[])(struct __sk_buff *) = {
	run_connect,	 run_connect,	     run_connect_direct,
	run_sendmsg,	 run_sendmsg,	     run_sendmsg,
	run_sendmsg,	 run_sendmsg_direct, run_source,
	run_peername,	 run_find,	     run_legacy_store,
	run_lb_select,	 run_service_lookup, run_bind_would_hijack,
	run_health_bind,
};

static __u64 counted(__u32 metric)
{
	__u64 *v = host_lookup(&revsk_metrics, &metric, sizeof(metric), sizeof(*v), 1);

	return *v;
}

/* The tuples that sockets hold are those that were counted as stored, and not as gone. */
static void balance(void)
{
	__u64 held = 0;

	for (int i = 0; i < SOCKETS; i++) {
		struct sock_ref s = { .sk = &sockets[i] };
		struct revsk_conn_value *conn = conn_get(&s);
		struct revsk_peers_value *p = peers_get(&s);

		held += (conn && conn->tuple.peer_port) + !!former_get(&s, conn) +
			(p ? p->table_count : 0);
		for (int j = 0; p && j < REVSK_SLOTS; j++)
			held += !!p->slots[j].peer_port;
	}
	must(held == counted(REVSK_STORED) - counted(REVSK_RELEASED) -
			     counted(REVSK_DROPPED_DIRECT) - counted(REVSK_DROPPED_REPLACED) -
			     counted(REVSK_EVICTED));
}

/* The socket is closed: the kernel frees what is on it. */
static void release(struct __sk_buff *skb)
{
	must(run_release(skb) == DONE);
	input.run++;
	for (int i = 0; i < 40; i++) {
		free(storage[current][i].value);
		storage[current][i] = (struct storage){};
	}
}

/* A service of the address in the input, with up to two backends. */
static void serve(void)
{
	struct lb_service service = { .rev_nat_index = input.tuple.rev_nat_index,
				      .count = below(3),
				      .flags = host_random() & host_random() };
	__u32 count = service.count, protocol = below(3) ? IPPROTO_UDP : IPPROTO_TCP;
	struct lb4_key key4 = { .protocol_scope = protocol };
	struct lb6_key key6 = { .address = input.tuple.service, .protocol_scope = protocol };
	struct lb4_backend backend4 = { .port = input.tuple.peer_port };
	struct lb6_backend backend6 = { .address = input.tuple.peer,
					.port = input.tuple.peer_port };

	memcpy(&key4.address, &input.tuple.service.bytes[12], 4);
	memcpy(&backend4.address, &input.tuple.peer.bytes[12], 4);
	for (__u32 slot = 0; slot <= count; slot++) {
		__u32 id = 1 + below(20);

		if (slot)
			service = (struct lb_service){ .word = id };
		key4.port_slot = key6.port_slot = WORD_OF(input.tuple.service_port, slot);
		host_update(&cilium_lb4_services_v2, &key4, &service, sizeof(key4), sizeof(service),
			    0);
		host_update(&cilium_lb6_services_v2, &key6, &service, sizeof(key6), sizeof(service),
			    0);
		host_update(&cilium_lb4_backends_v3, &id, &backend4, sizeof(id), sizeof(backend4),
			    0);
		host_update(&cilium_lb6_backends_v3, &id, &backend6, sizeof(id), sizeof(backend6),
			    0);
	}
}

static void one_call(void)
{
	struct __sk_buff skb = {};
	struct revsk_config_value *config;
	__u32 zero = 0;
	int program = below(sizeof(programs) / sizeof(*programs)), ret;

	current = below(SOCKETS);
	input.run++;
	input.packet_is_v6 = below(2);
	input.packet_is_tcp = below(2);
	input.socket_cookie = current + 1;
	input.netns_cookie = below(3);
	input.host_netns_cookie = below(3);
	endpoint_of(&input.tuple.peer, &input.tuple.peer_port, 1, 400);
	endpoint_of(&input.tuple.service, &input.tuple.service_port, 2, 40);
	if (!input.tuple.peer_port)
		input.tuple.peer_port = 1; /* no tuple has none */
	input.tuple.rev_nat_index = below(50);
	input.tuple.backend_id = below(1000);
	input.tuple.time += below(3);
	endpoint_of(&input.address.addr, &input.address.port, 1 + below(2), 400);
	input.protocol = below(3) ? IPPROTO_UDP : IPPROTO_TCP;
	input.datagram = below(4) != 0;
	sockets[current] = (struct bpf_sock){
		.family = below(2) ? AF_INET6 : AF_INET,
		.dst_port = input.address.port,
		.dst_ip6 = { 0, 0, ~0U, host_random() },
	};
	config = host_lookup(&revsk_config, &zero, sizeof(zero), sizeof(*config), 1);
	if (!below(200)) {
		config->mode = below(4);
		config->mark = below(2) ? 0 : input.tuple.time;
	}
	if (!below(20))
		serve();
	if (!below(500)) {
		memory_is_short = false;
		release(&skb);
	}
	balance();
	memory_is_short = !below(4);
	ret = programs[program](&skb);
	must(ret == DONE && !locked && !found);
	memory_is_short = false;
}

int main(int argc, char **argv)
{
	long calls = argc > 1 ? atol(argv[1]) : 100000;

	seed = argc > 2 ? atol(argv[2]) : 1;
	for (long i = 0; i < calls; i++)
		one_call();
	printf("%ld calls\n", calls);
	return 0;
}
