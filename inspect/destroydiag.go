// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockdiag"
)

// diagDestroyer destroys with SOCK_DESTROY of sock_diag.
type diagDestroyer struct{}

func (diagDestroyer) name() string { return "sock_diag" }

func (diagDestroyer) load(Maps) error {
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		err := sockdiag.Probe(protocol)
		if errors.Is(err, sockdiag.ErrNotSupported) {
			return fmt.Errorf("sock_diag %w: %w", errCannot, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (diagDestroyer) close() {}

// destroy looks for the sockets once more. That finds out their addresses and, before Linux 5.12, their
// cookies, and which are no longer connected: SOCK_DESTROY finds a datagram socket by its local port
// alone if it must.
func (diagDestroyer) destroy(ctx context.Context, sockets []*Termination) error {
	type kind struct {
		family, protocol int
		port             uint16
	}
	byKind := make(map[kind][]*Termination)
	for _, s := range sockets {
		k := kind{int(s.Socket.Family), int(s.Socket.Protocol), s.Socket.Peer.Port()}
		byKind[k] = append(byKind[k], s)
	}
	for k, wanted := range byKind {
		if err := ctx.Err(); err != nil {
			return err
		}
		present, err := sockdiag.List(k.family, k.protocol, k.port)
		if err != nil {
			return err
		}
		byInode := make(map[uint64][]sockdiag.Socket)
		for _, p := range present {
			byInode[uint64(p.Inode)] = append(byInode[uint64(p.Inode)], p)
		}
		for _, s := range wanted {
			// Before Linux 6.9 everybody's sock_diag on the machine would wait with this one.
			if s.Socket.owned {
				s.set(OutcomeFailed, fmt.Errorf("%w, this one, or just works on it", ErrLocked))
				continue
			}
			s.set(OutcomeLeft, nil)
			for _, p := range byInode[s.Socket.Inode] {
				if p.Remote != s.Socket.Peer || s.Socket.Cookie != 0 && p.Cookie != s.Socket.Cookie {
					continue
				}
				err := sockdiag.Destroy(p)
				if err == nil {
					s.set(OutcomeDestroyed, nil)
				} else if !errors.Is(err, os.ErrNotExist) {
					s.set(OutcomeFailed, err)
				}
			}
		}
	}
	return nil
}
