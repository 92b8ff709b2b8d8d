// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queryAttr is the part of union bpf_attr that BPF_PROG_QUERY uses.
type queryAttr struct {
	targetFD    uint32
	attachType  uint32
	queryFlags  uint32
	attachFlags uint32 // out
	progIDs     uint64
	progCount   uint32 // out
	_           uint32
	progFlags   uint64
	linkIDs     uint64
	linkFlags   uint64
	revision    uint64
}

// checkNotExclusive finds out whether a link could be attached to the cgroup, by the rules of the
// kernel: it could not beside programs that are attached to the same cgroup without
// BPF_F_ALLOW_MULTI, nor below one that is attached without any flag. Returns an error wrapping
// [ErrExclusive].
func checkNotExclusive(cgroup string, h hook) error {
	dir, err := filepath.Abs(cgroup)
	if err != nil {
		return err
	}
	for own := true; ; own = false {
		flags, count, err := queryHook(dir, h)
		switch {
		case !own && (errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL)):
			return nil // above the mount point
		case err != nil:
			return describe(fmt.Errorf("asking what is attached to %s: %w", dir, err))
		case count > 0 && flags&unix.BPF_F_ALLOW_MULTI != 0:
			return nil
		case count > 0 && (own || flags&unix.BPF_F_ALLOW_OVERRIDE == 0):
			return fmt.Errorf("%s of %s: %w", h.program, dir, ErrExclusive)
		case count > 0 || dir == "/":
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// queryHook returns the flags with which programs are attached to a cgroup, and how many they are.
func queryHook(dir string, h hook) (flags, count uint32, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	attr := queryAttr{targetFD: uint32(f.Fd()), attachType: uint32(h.attach)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(f)
	if errno != 0 {
		return 0, 0, errno
	}
	return attr.attachFlags, attr.progCount, nil
}
