// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/proc"
)

// OfProcess returns the namespace that the main thread of a process is in. The caller closes it. Needs
// CAP_SYS_PTRACE.
func OfProcess(pid int) (*Namespace, error) {
	file, err := os.Open(proc.Path(pid, "ns", "net"))
	if err != nil {
		return nil, err
	}
	return fromFile(file)
}

// OfSocket returns the namespace of a socket that the caller has open. The caller closes it. Needs
// CAP_NET_ADMIN.
func OfSocket(fd int) (*Namespace, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("getting the network namespace of a socket: %w", err)
	}
	return fromFile(os.NewFile(uintptr(ns), "of a socket"))
}

// OfProcessSocket returns the namespace of a socket that a process has open, named by its inode as
// in /proc/PID/fd: the way to a namespace that only the socket keeps. The caller closes it. Needs
// CAP_NET_ADMIN and CAP_SYS_PTRACE.
//
// Returns an error wrapping [os.ErrNotExist] if the process is gone or has the socket no longer.
func OfProcessSocket(pid int, inode uint64) (*Namespace, error) {
	n, err := ofProcessSocket(pid, inode)
	if err != nil {
		return nil, fmt.Errorf("socket %d of process %d: %w", inode, pid, err)
	}
	return n, nil
}

func ofProcessSocket(pid int, inode uint64) (*Namespace, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	for theirs, target := range proc.Files(pid) {
		if i, ok := proc.Inode(target, "socket"); !ok || i != inode {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, theirs, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		// The number may be another file's by now.
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		if st.Ino == inode {
			return OfSocket(fd)
		}
	}
	return nil, os.ErrNotExist
}
