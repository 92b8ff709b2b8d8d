// SPDX-License-Identifier: Apache-2.0

// Package loader puts socket-local reverse NAT on a machine and keeps it there: it opens the maps of
// a running load balancer, loads the programs, attaches them to a cgroup through pinned links, and
// replaces a running version hook by hook, each in one atomic step.
//
// All state lives in bpffs; there is no daemon. An agent calls [Load] at its start, as often as it
// starts. A call that fails leaves what ran before running.
//
// Each call observes what there is (observe.go), plans steps (plan.go) and applies them (apply.go).
// [PlanLoad], [PlanUnload], [PlanHandBack] and [Datapath.PlanMode] end with the plan.
//
// A node that runs a reference agent (Cilium) is taken over in place ([Options.Takeover]) and
// given back ([HandBack]).
//
// Minimum kernel: Linux 5.10. Capabilities: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON for a first load on a
// cgroup without programs; all else needs CAP_SYS_ADMIN too, because the kernel opens programs by id for
// nobody else.
package loader
