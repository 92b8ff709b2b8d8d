// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/attached"
)

// checkNotExclusive finds out whether a link could be attached to the cgroup, by the rules of the
// kernel: it could not beside programs that are attached to the same cgroup without
// BPF_F_ALLOW_MULTI, nor below one that is attached without any flag. Below one that is attached with
// BPF_F_ALLOW_OVERRIDE the kernel would attach it, and no longer run that program for the sockets of our cgroup: it may be a
// policy. Returns an error wrapping [ErrExclusive] or [ErrOverrides].
func checkNotExclusive(cgroup string, h hook) error {
	dir, err := filepath.Abs(cgroup)
	if err != nil {
		return err
	}
	for own := true; ; own = false {
		found, err := attached.To(dir, h.attach)
		flags, count := found.Flags, len(found.IDs)
		switch {
		case !own && (errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL)):
			return nil // above the mount point
		case err != nil:
			return describe(err)
		case count > 0 && flags&unix.BPF_F_ALLOW_MULTI != 0:
			return nil
		case count > 0 && (own || flags&unix.BPF_F_ALLOW_OVERRIDE == 0):
			return fmt.Errorf("%s of %s: %w", h.program, dir, ErrExclusive)
		case count > 0:
			o, err := describeProgram(found.IDs[0])
			if err != nil {
				return err
			}
			return fmt.Errorf("%s: %w: %v on %s", h.program, ErrOverrides, o, dir)
		case dir == "/":
			return nil
		}
		dir = filepath.Dir(dir)
	}
}
