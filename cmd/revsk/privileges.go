// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
)

// privilege is a capability that a command needs.
type privilege struct {
	bit  uintptr
	name string
	// before is the first kernel that no longer requires it; "": all kernels do.
	before string
}

var (
	capAdmin    = privilege{bit: unix.CAP_SYS_ADMIN, name: "CAP_SYS_ADMIN"}
	capBPF      = privilege{bit: unix.CAP_BPF, name: "CAP_BPF"}
	capNetAdmin = privilege{bit: unix.CAP_NET_ADMIN, name: "CAP_NET_ADMIN"}
	capPerfmon  = privilege{bit: unix.CAP_PERFMON, name: "CAP_PERFMON"}
	capPtrace   = privilege{bit: unix.CAP_SYS_PTRACE, name: "CAP_SYS_PTRACE"}
	capOverride = privilege{bit: unix.CAP_DAC_OVERRIDE, name: "CAP_DAC_OVERRIDE"}
	// Lifts the limit of locked memory, which maps counted as. Not needed if there is no limit.
	capResource = privilege{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", "5.11"}
	// With unprivileged_bpf_disabled, the bpf system call refused even the use of an open map.
	capOldBPF = privilege{capBPF.bit, capBPF.name, "5.19"}
	// Destroys sockets by sock_diag, where programs cannot destroy them.
	capOldDestroy = privilege{capNetAdmin.bit, capNetAdmin.name, "6.5"}
)

// need is the smallest set of capabilities with which a command works for root. CAP_SYS_ADMIN includes
// CAP_BPF and CAP_PERFMON, and, for loading programs, CAP_NET_ADMIN.
type need struct {
	caps []privilege
	when string // "": always
}

// privileges are the needs of each command. A command that opens the datapath, and checks that it is what it expects, looks
// programs and types up by their ids: only CAP_SYS_ADMIN allows this.
var privileges = map[string][]need{
	"revsk load": {
		{[]privilege{capBPF, capNetAdmin, capPerfmon, capResource}, "for a first load"},
		{[]privilege{capAdmin, capResource}, "to replace what runs"},
		{[]privilege{capAdmin, capPtrace, capResource}, "to take over, which migrates"},
	},
	"revsk unload": {
		{[]privilege{capOldBPF}, ""},
		{[]privilege{capAdmin}, "with --purge or --hand-back"},
	},
	"revsk status": {{[]privilege{capAdmin}, ""}},
	"revsk mode": {
		{[]privilege{capAdmin}, "to show it"},
		{[]privilege{capAdmin, capResource}, "to switch it"},
	},
	"revsk list": {
		{[]privilege{capAdmin, capResource}, ""},
	},
	"revsk terminate": {
		{[]privilege{capAdmin, capOldDestroy, capResource}, ""},
		{[]privilege{capAdmin, capNetAdmin, capResource, capPtrace}, "to reach the network namespaces of processes with more capabilities"},
	},
	"revsk migrate":  {{[]privilege{capAdmin, capPtrace, capResource}, ""}},
	"revsk rollback": {{[]privilege{capAdmin, capPtrace, capResource}, ""}},
	"revsk agent": {
		{[]privilege{capAdmin, capNetAdmin, capPtrace, capResource}, ""},
		{[]privilege{capAdmin, capPtrace, capResource}, "with --audit-only"},
	},
	"revsk service list":   {{[]privilege{capOldBPF}, ""}},
	"revsk service add":    {{[]privilege{capOldBPF}, ""}},
	"revsk service delete": {{[]privilege{capOldBPF}, ""}},
	"revsk features":       {{[]privilege{capBPF, capNetAdmin, capPerfmon, capResource}, ""}},
	"revsk selftest":       {{[]privilege{capAdmin, capNetAdmin, capOverride, capResource}, ""}},
}

// used are capabilities that commands use if they have them, to see hidden processes and the files of other users'
// processes, and that they do not need.
var used = map[string][]privilege{
	"revsk list":   {capPtrace},
	"revsk status": {capPtrace},
}

// giveUp removes from the process the capabilities that the command does not use.
func giveUp(command string) error {
	keep := []uintptr{unix.CAP_DAC_READ_SEARCH}
	for _, n := range append([]need{{caps: used[command]}}, privileges[command]...) {
		for _, c := range n.caps {
			keep = append(keep, c.bit)
		}
	}
	return capability.Keep(keep...)
}

// String is like "CAP_A, CAP_B (before Linux 5.11) to do this".
func (n need) String() string {
	var names []string
	for _, c := range n.caps {
		if c.before == "" {
			names = append(names, c.name)
		} else {
			names = append(names, fmt.Sprintf("%s (before Linux %s)", c.name, c.before))
		}
	}
	return strings.TrimSpace(strings.Join(names, ", ") + " " + n.when)
}

// describeNeeds says in one line what a command needs.
func describeNeeds(command string) string {
	var all []string
	for _, n := range privileges[command] {
		all = append(all, n.String())
	}
	return strings.Join(all, "; ")
}

// addNeedsToHelp makes the help of every command say what it needs.
func addNeedsToHelp(cmd *cobra.Command) {
	if needs := privileges[cmd.CommandPath()]; needs != nil {
		cmd.Long += "\n\nNeeds root with these capabilities:"
		for _, n := range needs {
			cmd.Long += "\n  " + n.String()
		}
	}
	for _, sub := range cmd.Commands() {
		addNeedsToHelp(sub)
	}
}
