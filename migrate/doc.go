// SPDX-License-Identifier: Apache-2.0

// Package migrate moves what a live node's sockets need from the global hash (cilium_lb{4,6}_reverse_sk)
// onto the sockets, and back: [Run], [Rollback], and [MakePlan], which only looks.
//
// Applications keep their sockets and see no backend's address at any moment: during the move the hooks
// run in mode dual, write both states and read either.
//
// A tuple is added to a socket under the lock of the socket, by the rules of the hooks (bpf/lib/import.h),
// so a live hook always wins. An [Engine] is a way to come to every socket with its lock held.
//
// Minimum kernel: Linux 5.10; EngineIter needs 6.5. Capabilities: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN,
// CAP_SYS_ADMIN (to enter network namespaces and to find maps and types by their ids) and CAP_SYS_PTRACE
// (descriptors of other processes).
package migrate
