// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
)

// lacking names the capabilities for loading programs that this process does not have.
func lacking() string {
	if capability.Missing(unix.CAP_SYS_ADMIN) == "" {
		return "" // it stands for the others
	}
	return capability.Missing(unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON)
}

// allowMaps lets this process make maps: Linux before 5.11 accounts them against RLIMIT_MEMLOCK.
func allowMaps() error { return describe(rlimit.RemoveMemlock()) }
