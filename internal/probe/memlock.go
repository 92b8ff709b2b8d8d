// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// AllowMaps lets this process make maps: Linux before 5.11 accounts them against RLIMIT_MEMLOCK. Returns an error wrapping EPERM if
// it may not.
func AllowMaps() error { return allowMaps(rlimit.RemoveMemlock()) }

// allowMaps goes on from what the library has answered. It asks the kernel once, before main: an error that is not EPERM says that
// it has got no answer, as for want of memory or descriptors. To lift the limit where it does not count does no harm; where it does,
// and that fails, the next map does.
func allowMaps(err error) error {
	if err == nil || errors.Is(err, unix.EPERM) {
		return err
	}
	_ = unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil)
	return nil
}
