/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the dump says of one socket: a header about the socket itself, then tuples.
 *
 * Records go one after the other into a buffer that user space maps and reads when the iterator has
 * finished. They do not go through seq_write: the seq_file of a storage map counts its way to where it was
 * after every full buffer, so a long output is quadratic, and what does not fit is run again.
 */
#pragma once

#include "kernel_iter.h"
#include "table.h"

struct revsk_socket {
	__u64 id; /* the kernel's address of the socket: tells sockets without a cookie apart */
	__u64 cookie; /* 0: the socket has none yet */
	__u64 inode; /* as in /proc/PID/fd; 0: no longer, or not yet, a file's */
	__u64 netns_cookie; /* 0: the kernel does not tell */
	__u32 netns_inode;
	__u16 tuples; /* so many follow; and REVSK_SUBFLOW, REVSK_OWNED */
	__u16 protocol;
	__u16 local_port; /* host byte order, as the kernel has it */
	__be16 peer_port;
	__u16 table_version; /* the lower half of that of revsk_peers */
	__u8 family;
	__u8 state;
	union ip_addr local;
	union ip_addr peer;
};

_Static_assert(sizeof(struct revsk_socket) == 80, "revsk_socket is 80 bytes");

/* Of MPTCP: what an application has open is another socket, of which this is a connection. */
#define REVSK_SUBFLOW 0x8000
/* A system call works on it just now, or waits with its lock. */
#define REVSK_OWNED 0x4000

/*
 * Of a whole record the first tuple is the connection, the second the former one, and the others are of
 * the peers. A tuple without a port is none.
 */
struct revsk_record {
	struct revsk_socket socket;
	struct revsk_tuple tuples[2 + REVSK_SLOTS];
};

#define RECORD_SIZE(n) (sizeof(struct revsk_socket) + (n) * sizeof(struct revsk_tuple))

_Static_assert(sizeof(struct revsk_record) == RECORD_SIZE(2 + REVSK_SLOTS), "no padding");

/* User space decides about the size. */
struct revsk_buffer {
	__u64 words[512];
};

#define BPF_F_MMAPABLE (1U << 10)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct revsk_buffer);
} revsk_records SEC(".maps");

volatile const __u64 cfg_buffer_size = sizeof(struct revsk_buffer);

/* Where in the buffer the next record begins. One program runs at a time. */
__u64 revsk_position = 0;

/*
 * How many more bytes records would have needed, at most, for which the buffer had no room; and how
 * many records changed while they were made. User space reads that part of the sockets again, in
 * smaller parts or with a larger buffer.
 */
__u64 revsk_bytes_lost = 0;
__u64 revsk_records_torn = 0;

/* The part of the sockets that is wanted: those whose hash is from first to last. */
__u32 revsk_part_first = 0;
__u32 revsk_part_last = 0;

__u64 revsk_scratch = 0;

/*
 * A number of which the verifier knows nothing: what it knows of a position would be another thing
 * on each way there, and it would walk what follows once for each of them.
 */
static __always_inline __u64 unknown(__u64 number)
{
	*(volatile __u64 *)&revsk_scratch = number;
	return *(volatile __u64 *)&revsk_scratch & ~7ULL;
}

/*
 * The hash is one of the socket's address. The verifier lets nobody calculate with a pointer, but it can be
 * stored as a number.
 */
static __always_inline bool is_in_part(struct sock *sk)
{
	__u32 hash;

	*(volatile __u64 *)&revsk_scratch = (__u64)sk;
	hash = (*(volatile __u64 *)&revsk_scratch >> 6) * 0x9e3779b97f4a7c15ULL >> 32;
	return hash >= revsk_part_first && hash <= revsk_part_last;
}

/*
 * Room for @size bytes at a position of the buffer, or NULL.
 *
 * Inline: where an iterator has functions, a pointer of the kernel's that it reads through in vain stops
 * Linux 5.10 ("ensure main program has an extable", 6.4).
 */
static __always_inline void *room_at(__u64 position, __u64 size)
{
	__u32 zero = 0;
	void *at = bpf_map_lookup_elem(&revsk_records, &zero);

	/*
	 * In one piece: where the compiler has put the position on the stack in between, Linux 6.1
	 * does not know of it what the comparison has said.
	 */
	if (at)
		asm volatile("if %[position] <= %[last] goto +2\n"
			     "%[at] = 0\n"
			     "goto +1\n"
			     "%[at] += %[position]\n"
			     : [at] "+r"(at)
			     : [position] "r"(position), [last] "r"(cfg_buffer_size - size));
	if (!at)
		__sync_fetch_and_add(&revsk_bytes_lost, size);
	return at;
}

static __always_inline void record_socket(struct revsk_socket *r, struct sock *sk, __u64 cookie)
{
	struct sock_common *c = &sk->__sk_common;
	const struct endpoint peer = actual_peer(c);
	struct net *net = c->skc_net.net;

	r->id = (__u64)sk;
	r->cookie = cookie;
	/* Reading through a pointer that is NULL gives 0. */
	r->inode = sk->sk_socket->file->f_inode->i_ino;
	r->netns_cookie = bpf_core_field_exists(net->net_cookie) ? net->net_cookie : 0;
	r->netns_inode = net->ns.inum;
	r->protocol = sk->sk_protocol;
	r->local_port = c->skc_num;
	r->peer_port = peer.port;
	r->table_version = 0;
	r->family = (__u8)c->skc_family;
	r->state = c->skc_state;
	r->local = local_address(c);
	r->peer = peer.addr;
}

/* The record is whole: it stays, and the next one comes after it. */
static __always_inline void record_keep(struct revsk_socket *r, struct sock *sk, __u64 begin,
					__u16 tuples)
{
	struct sock *opened = sk->sk_socket->sk; /* as for r->inode */

	r->tuples = tuples | (opened && (__u64)opened != r->id ? REVSK_SUBFLOW : 0) |
		    (sk->sk_lock.owned ? REVSK_OWNED : 0);
	revsk_position = begin + RECORD_SIZE(tuples);
}
