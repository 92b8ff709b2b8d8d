// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/internal/openfiles"
	"github.com/revsk/revsk/internal/sockaddr"
)

// endParents ends the MPTCP sockets whose connections were destroyed. The kernel itself waits for another connection
// first, a minute by default, while the application notices nothing. They are disconnected by a descriptor: to destroy
// them is not possible. So the application finds the end of the stream, and EPIPE where it sends.
func endParents(ctx context.Context, sockets []*Termination) error {
	open := make(map[uint64][]*Termination) // by inode
	for _, s := range sockets {
		if s.Outcome == OutcomeDestroyed && s.Socket.Subflow {
			open[s.Socket.Inode] = append(open[s.Socket.Inode], s)
		}
	}
	if len(open) == 0 {
		return nil
	}
	for f, err := range openfiles.Sockets(ctx) {
		if err != nil {
			return err
		}
		subflows := open[f.Inode]
		if subflows == nil {
			continue
		}
		err := disconnectParent(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed there; others may have it
		}
		delete(open, f.Inode)
		if err != nil {
			for _, s := range subflows {
				s.set(OutcomeFailed, fmt.Errorf("ending its MPTCP socket: %w", err))
			}
		}
	}
	return nil
}

// disconnects wait for the lock of the socket that is disconnected.
var disconnects blocked.Calls

// disconnectParent disconnects a socket of another process. Returns an error wrapping os.ErrNotExist if it is not there any
// more.
func disconnectParent(f openfiles.File) error {
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrNotExist
	}
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, f.FD, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) {
		return os.ErrNotExist
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != f.Inode {
		return os.ErrNotExist // another file by now
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_MPTCP {
		return err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return disconnects.Do(f.Inode, func() { unix.Close(own) }, func() error { return sockaddr.Disconnect(own) })
}
