// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"strings"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// lacking names the capabilities for loading programs that this process does not have.
func lacking() string {
	var held [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &held[0]); err != nil {
		return ""
	}
	has := func(capability int) bool { return held[capability/32].Effective&(1<<(capability%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		// It stands for the others.
		return ""
	}
	var names []string
	for _, c := range []struct {
		capability int
		name       string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_PERFMON, "CAP_PERFMON"}} {
		if !has(c.capability) {
			names = append(names, c.name)
		}
	}
	return strings.Join(names, ", ")
}

// allowMaps lets this process make maps: Linux before 5.11 accounts them against RLIMIT_MEMLOCK.
func allowMaps() error { return describe(rlimit.RemoveMemlock()) }
