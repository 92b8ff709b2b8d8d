//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Which descriptors of processes lead to files of one file system: the output of the iterator. */
#include "kernel_iter.h"

/* The number of the file system. */
volatile const __u32 cfg_magic = 0;

struct revsk_open_file {
	__u64 inode;
	__u32 pid; /* as the kernel's first pid namespace has it */
	__u32 fd;
};

_Static_assert(sizeof(struct revsk_open_file) == 16, "revsk_open_file is 16 bytes");

SEC("iter/task_file") int list_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct revsk_open_file open = { .fd = ctx->fd };

	/* What a thread has for itself is in a table that only the thread itself shows. */
	if (!task || !file || task->pid != task->tgid || file->f_inode->i_sb->s_magic != cfg_magic)
		return 0;
	open.inode = file->f_inode->i_ino;
	open.pid = task->tgid;
	bpf_seq_write(ctx->meta->seq, &open, sizeof(open));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
