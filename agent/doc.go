// SPDX-License-Identifier: Apache-2.0

// Package agent keeps a node right by itself: it loads the datapath, takes over again when another agent (Cilium) has
// put its programs back, moves what is only in the hash onto the sockets, and ends the sockets that are connected through a
// service to a backend that is gone.
//
// It keeps no state of its own. All that it knows is in the kernel: killed at any moment, nothing changes for
// applications; started again, it looks and goes on. Everything that it does is a call of the packages loader, migrate
// and inspect.
//
// Two agents on one node: the second waits until the first has ended.
//
// Minimum kernel: Linux 5.10 with BTF. Capabilities: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE,
// before Linux 5.11 CAP_SYS_RESOURCE too.
package agent
