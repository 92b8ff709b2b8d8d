/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters, per CPU. At any moment: stored = released + dropped_* + evicted + tuples on live sockets. */
#pragma once

#include "kernel.h"

/* Append only: the numbers are the keys of a pinned map. */
enum revsk_metric {
	REVSK_STORED = 0, /* tuples added to a socket */
	REVSK_RELEASED = 1, /* tuples that were on a socket when it was released */
	REVSK_DROPPED_DIRECT = 3, /* dropped: the application turned to the peer itself */
	REVSK_DROPPED_REPLACED = 4, /* dropped: another tuple has taken its place */
	REVSK_UPDATED = 5, /* tuples that changed in place: same peer, another service */
	REVSK_EVICTED = 6, /* tuples of a table that had to make room for another */
	REVSK_RELEASE_ZEROED = 7, /* releases whose destination the kernel had zeroed */
	REVSK_REJECTED_NO_BACKEND = 8, /* calls rejected with EHOSTUNREACH */
	REVSK_REJECTED_NO_MEMORY = 9, /* calls rejected with ENOMEM */
	REVSK_TRANSLATED = 10, /* connects and sends rewritten to a backend, rejected or not */
	REVSK_REVERSED = 11, /* reads rewritten to a service */
	REVSK_HASH_NOT_WRITTEN = 12, /* mode mirror: tuples that the hash has not taken */
	REVSK_METRIC_COUNT = 13,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REVSK_METRIC_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} revsk_metrics SEC(".maps");

static __always_inline void count_n(enum revsk_metric metric, __u64 n)
{
	__u32 key = metric;
	__u64 *v = bpf_map_lookup_elem(&revsk_metrics, &key);

	/* Atomic: where the kernel is preemptible another program can count on this CPU in between. */
	if (v)
		__sync_fetch_and_add(v, n);
}

static __always_inline void count(enum revsk_metric metric)
{
	count_n(metric, 1);
}
