//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Which sockets of other families are in flight: in a message that waits in the queue of a Unix socket.
 * What the iterator over Unix sockets writes is a record for each.
 *
 * It walks queues without their locks, so every word is read in a way that cannot fault. A message that is
 * received meanwhile may end the walk of its queue, or make it miss some: the caller has several goes.
 */
#include "kernel_iter.h"

#define SOCKFS_MAGIC 0x534f434b

struct revsk_queued_socket {
	__u64 cookie;
	__u16 family;
	__u16 protocol;
	__u32 pad;
};

_Static_assert(sizeof(struct revsk_queued_socket) == 16, "revsk_queued_socket is 16 bytes");

/* No queue is longer, and no message has more descriptors (SCM_MAX_FD). */
#define MAX_MESSAGES (1 << 20)
#define MAX_DESCRIPTORS 253

struct walk {
	struct seq_file *output;
	struct sk_buff *message;
	struct sk_buff *end;
	struct scm_fp_list *files;
};

static long list_file(__u32 i, struct walk *w)
{
	struct revsk_queued_socket record = {};
	struct scm_fp_list *files = w->files;
	struct socket *socket;
	struct file *file;
	struct sock *sk;

	bpf_probe_read_kernel(&file, sizeof(file), &files->fp[i]);
	if (!file || BPF_CORE_READ(file, f_inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk)
		return 0;
	record.cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (!record.cookie)
		return 0;
	record.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	record.protocol = BPF_CORE_READ(sk, sk_protocol);
	bpf_seq_write(w->output, &record, sizeof(record));
	return 0;
}

static long list_message(__u32 i, struct walk *w)
{
	struct sk_buff *message = w->message;
	struct unix_skb_parms *parms;
	struct scm_fp_list *files;
	short count;

	if (!message || message == w->end)
		return 1;
	parms = (struct unix_skb_parms *)&message->cb;
	files = BPF_CORE_READ(parms, fp);
	if (files) {
		w->files = files;
		count = BPF_CORE_READ(files, count);
		if (count > 0 && count <= MAX_DESCRIPTORS)
			bpf_loop(count, list_file, w, 0);
	}
	w->message = BPF_CORE_READ(message, next);
	return 0;
}

SEC("iter/unix") int list_queued(struct bpf_iter__unix *ctx)
{
	struct sk_buff_head *queue;
	struct walk w = {};

	if (!ctx->unix_sk)
		return 0;
	queue = &ctx->unix_sk->sk.sk_receive_queue;
	w.output = ctx->meta->seq;
	w.end = (struct sk_buff *)queue;
	w.message = BPF_CORE_READ(queue, next);
	bpf_loop(MAX_MESSAGES, list_message, &w, 0);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
