// SPDX-License-Identifier: Apache-2.0

// Package kernel tests the datapath as applications meet it: real sockets, through the hooks that
// the loader has attached to a cgroup, on the running kernel. There is a test per hook, with a table
// of its rules; the name of a test is the rule.
//
// The tests run in a sandbox (package sandbox): a cgroup, a network namespace with nothing but
// loopback, and a BPF file system of their own. All of them share one datapath. After each rule the
// books must balance: no tuple is left, in no map, and every one ever stored is accounted for.
package kernel
