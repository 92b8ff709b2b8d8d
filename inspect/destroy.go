// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
	"github.com/revsk/revsk/internal/netns"
)

// destroyer is a way to destroy sockets.
type destroyer interface {
	name() string
	// load returns an error wrapping errCannot if the kernel has not got what it takes.
	load(maps Maps) error
	// destroy destroys sockets, all of the network namespace that the calling thread is in, and sets
	// their outcome.
	destroy(ctx context.Context, sockets []*Termination) error
	close()
}

// errCannot says that the kernel has not got what a destroyer needs.
var errCannot = errors.New("not available")

// destroy destroys sockets of any namespaces, and sets the outcome of each. A dry run only finds out
// which namespaces can be reached.
func (t *termination) destroy(ctx context.Context, sockets []*Termination) error {
	byNetNS := make(map[uint64][]*Termination)
	for _, s := range sockets {
		inode := s.Socket.NetNS.Inode
		byNetNS[inode] = append(byNetNS[inode], s)
	}
	namespaces, err := reach(ctx, sockets)
	if err != nil {
		return err
	}
	defer namespaces.Close()
	for _, ns := range namespaces {
		here := byNetNS[ns.Inode]
		delete(byNetNS, ns.Inode)
		if len(here) == 0 || t.opts.DryRun {
			continue
		}
		err := ns.Do(func() error { return t.destroyer.destroy(ctx, here) })
		if errors.Is(err, ErrLocked) {
			err = ns.Do(func() error { return destroySingly(ctx, here, err) })
		}
		if err != nil {
			return fmt.Errorf("network namespace %d: %w", ns.Inode, err)
		}
	}
	if !t.opts.DryRun {
		if err := endParents(ctx, sockets); err != nil {
			return err
		}
	}
	if len(byNetNS) == 0 {
		return nil
	}
	err = ErrUnreachable
	if missing := capability.Missing(unix.CAP_SYS_PTRACE, unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH); missing != "" {
		err = fmt.Errorf("%w without %s", err, missing)
	}
	for _, unreachable := range byNetNS {
		for _, s := range unreachable {
			s.set(OutcomeFailed, err)
		}
	}
	return nil
}

// destroySingly destroys what the iterators have not, of which one waits for a socket that a process keeps locked: by sock_diag,
// which wants the lock of the very socket only, and is not asked for those that were locked.
func destroySingly(ctx context.Context, sockets []*Termination, locked error) error {
	left := slices.DeleteFunc(slices.Clone(sockets), func(s *Termination) bool { return s.Outcome == OutcomeDestroyed })
	err := diagDestroyer{}.load(Maps{})
	if !errors.Is(err, errCannot) {
		return errors.Join(err, diagDestroyer{}.destroy(ctx, left))
	}
	for _, s := range left {
		s.set(OutcomeFailed, fmt.Errorf("%w, maybe another one: %w", locked, err))
	}
	return nil
}

func (s *Termination) set(o Outcome, err error) { s.Outcome, s.Err = o, err }

// reach opens the network namespaces of the sockets, as far as there is a way into them: mostly that of a process
// that has a socket open.
func reach(ctx context.Context, sockets []*Termination) (found netns.List, err error) {
	wanted := make(map[uint64]bool)
	for _, s := range sockets {
		wanted[s.Socket.NetNS.Inode] = true
	}
	take := func(n *netns.Namespace, err error) {
		switch {
		case err != nil:
		case wanted[n.Inode]:
			delete(wanted, n.Inode)
			found = append(found, n)
		default:
			n.Close()
		}
	}
	eachOwner := func(f func(s *Socket, pid int)) {
		for _, s := range sockets {
			for _, p := range s.Socket.Owners {
				if wanted[s.Socket.NetNS.Inode] {
					f(&s.Socket, p.ID)
				}
			}
		}
	}
	tried := make(map[int]bool)
	eachOwner(func(_ *Socket, pid int) {
		if !tried[pid] {
			tried[pid] = true
			take(netns.OfProcess(pid))
		}
	})
	if len(wanted) == 0 {
		return found, nil
	}
	all, err := netns.All(ctx)
	if err != nil {
		return nil, errors.Join(err, found.Close())
	}
	for _, n := range all {
		take(n, nil)
	}
	// The socket may be the only thing that keeps it.
	eachOwner(func(s *Socket, pid int) { take(netns.OfProcessSocket(pid, s.Inode)) })
	return found, nil
}
