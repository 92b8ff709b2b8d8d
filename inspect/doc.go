// SPDX-License-Identifier: Apache-2.0

// Package inspect shows which sockets hold reverse-NAT tuples, and ends connections to backends that are
// gone.
//
// It reads revsk's storage maps with BPF iterators, which visit exactly the sockets that have storage,
// in every network namespace. That needs Linux 5.9 with the kernel's BTF, CAP_BPF and CAP_PERFMON (or
// CAP_SYS_ADMIN), and before 5.11 a limit of locked memory (RLIMIT_MEMLOCK) that the buffers fit in.
// Neither the hooks nor the sockets that are not to be destroyed notice, apart from the socket cookie, which [Sockets] makes the
// kernel choose for a socket that has none yet.
package inspect
