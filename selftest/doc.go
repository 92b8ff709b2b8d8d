// SPDX-License-Identifier: Apache-2.0

// Package selftest shows on the running kernel, with real sockets and through the real hooks, what
// becomes of a socket's reverse-NAT state when the socket ends: in the global hash (mode legacy) and
// on the socket (mode storage).
//
// Each case opens sockets to services of its own, ends them in one way, and counts what the maps
// hold before and after: entries of the hash, and tuples found by walking the storage maps. What is
// left after the last descriptor is closed has leaked. The hash leaks in about half of the cases, and
// that it does so exactly there is part of the test: it proves that the sockets really ended the way
// the case says.
//
// A program runs it in a cgroup, network namespace and BPF file system of its own, which go with the process,
// however it ends. Services and backends have addresses reserved for documentation, so that a load balancer
// attached to a parent cgroup does not know them.
//
// Minimum kernel: Linux 5.10. Needs root. Cases that need IPv6 or SOCK_DESTROY are reported as not
// supported where the kernel has none; they never count as cleaned up.
package selftest
