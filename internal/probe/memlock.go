// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// AllowMaps lets this process make maps: Linux before 5.11 accounts them against RLIMIT_MEMLOCK. Returns an error wrapping EPERM if
// it may not.
func AllowMaps() error {
	err := rlimit.RemoveMemlock()
	if err == nil || errors.Is(err, unix.EPERM) {
		return err
	}
	// The library asks the kernel once, before main, and for want of memory or descriptors has got no answer. Where the limit does
	// not count it does no harm; where it does, and this fails, the next map does.
	_ = unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil)
	return nil
}
