// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
)

// A variant is a machine set up in some other way than usual.
type variant struct {
	Name    string
	About   string
	Cmdline string           // added to the kernel's command line
	NoDiag  bool             // leave the modules for socket diagnosis out
	Adjust  func(*plan.Plan) // nil if the plan is the usual one

	// Lacks are the words that a test may skip with here, after "requires ".
	Lacks []string
}

var plain = variant{Name: "plain", About: "pure cgroup v2, bpffs, BTF, IPv6, socket diagnosis"}

var variants = []variant{
	plain,
	{
		Name:   "hybrid",
		About:  "version 1 controllers mounted, cgroup2 on /sys/fs/cgroup/unified",
		Adjust: func(p *plan.Plan) { p.HybridCgroups = true },
	},
	{
		Name:    "noipv6",
		About:   "booted with ipv6.disable=1",
		Cmdline: "ipv6.disable=1",
		Lacks:   []string{"IPv6"},
	},
	{
		Name:   "nobpffs",
		About:  "/sys/fs/bpf not mounted",
		Adjust: func(p *plan.Plan) { p.NoBPFFS = true },
		Lacks:  []string{"bpffs"},
	},
	{
		Name:   "nodiag",
		About:  "no inet_diag, tcp_diag, udp_diag: SOCK_DESTROY answers ENOENT",
		NoDiag: true,
		Lacks:  []string{"SOCK_DESTROY", "sock_diag"},
	},
	{
		Name:   "nobtf",
		About:  "/sys/kernel/btf empty",
		Adjust: func(p *plan.Plan) { p.HideBTF = true },
		Lacks:  []string{"BTF"},
	},
}

// parseVariants reads the names of variants; "all" is every one.
func parseVariants(names []string) ([]variant, error) {
	var chosen []variant
	for _, name := range names {
		if name == "all" {
			return variants, nil
		}
		i := slices.IndexFunc(variants, func(v variant) bool { return v.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("no variant %q; there are %s and all", name, variantNames())
		}
		chosen = append(chosen, variants[i])
	}
	return chosen, nil
}

func variantNames() string {
	var names []string
	for _, v := range variants {
		names = append(names, v.Name)
	}
	return strings.Join(names, ", ")
}
