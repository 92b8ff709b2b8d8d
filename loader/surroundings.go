// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// needDescriptors is more than a load has open at a time.
const needDescriptors = 128

// checkSurroundings finds out whether this process can tell what there is from what there is not.
//
// Opening a BPF object takes /proc, and without it looks as if the object did not exist. Trying what the
// kernel supports takes descriptors, and without them looks as if it supported nothing; for the
// rest of the process's life, since the outcome is remembered.
func checkSurroundings() error {
	const path = "/proc/self/fdinfo"
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoProc, present(err))
	}
	defer dir.Close()
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for range needDescriptors {
		fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %d files at a time (ulimit -n): %w", needDescriptors, err)
		}
		open = append(open, fd)
	}
	return nil
}

// transient tells whether an error says nothing about what was asked for: the same call may succeed later.
func transient(err error) bool {
	for _, e := range []error{unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
