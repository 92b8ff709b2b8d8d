// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
	"github.com/revsk/revsk/internal/probe"
)

// lacking names the capabilities for loading programs that this process does not have.
func lacking() string {
	if capability.Missing(unix.CAP_SYS_ADMIN) == "" {
		return "" // it stands for the others
	}
	return capability.Missing(unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON)
}

func allowMaps() error { return describe(probe.AllowMaps()) }
