// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"strings"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
)

// lacking names the capabilities for loading programs that this process does not have.
func lacking() string {
	held, err := capability.Held()
	if err != nil || held.Has(unix.CAP_SYS_ADMIN) {
		// It stands for the others.
		return ""
	}
	var names []string
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_PERFMON, "CAP_PERFMON"}} {
		if !held.Has(c.bit) {
			names = append(names, c.name)
		}
	}
	return strings.Join(names, ", ")
}

// allowMaps lets this process make maps: Linux before 5.11 accounts them against RLIMIT_MEMLOCK.
func allowMaps() error { return describe(rlimit.RemoveMemlock()) }
