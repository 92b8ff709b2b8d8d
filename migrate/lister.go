// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/netns"
	"github.com/revsk/revsk/internal/sockdiag"
	"github.com/revsk/revsk/lbmap"
)

// lister notes which sockets there are, without visiting them.
type lister struct {
	programs     *programs
	backends     map[backendKey]bool
	withoutEntry map[backendKey]int // nil: not to be counted
	listed       map[uint64]bool    // network namespaces, by inode
	done         map[uint64]bool    // sockets that need no visit, by inode
	dryRun       bool
}

func newLister(s *sweeper, p *programs) *lister {
	l := &lister{
		programs: p,
		backends: make(map[backendKey]bool),
		listed:   make(map[uint64]bool),
		done:     make(map[uint64]bool),
		dryRun:   s.dryRun,
	}
	if s.passes == 0 && len(s.backends) > 0 {
		// Of one pass only.
		s.withoutEntry = make(map[backendKey]int)
		l.withoutEntry = s.withoutEntry
	}
	for _, b := range s.backends {
		l.backends[b] = true
	}
	return l
}

// listAll notes the sockets that the kernel lists in the network namespaces of the machine.
func (l *lister) listAll(ctx context.Context) error {
	namespaces, err := netns.All(ctx)
	if err != nil {
		return err
	}
	defer namespaces.Close()
	for _, ns := range namespaces {
		if err := l.list(ns); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) list(ns *netns.Namespace) error {
	if l.listed[ns.Inode] {
		return nil
	}
	l.listed[ns.Inode] = true
	err := ns.Do(func() error {
		for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				sockets, err := sockdiag.List(family, protocol, 0)
				if err != nil {
					return err
				}
				for _, s := range sockets {
					l.note(s)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing the sockets of network namespace %d: %w", ns.Inode, err)
	}
	return nil
}

func (l *lister) note(s sockdiag.Socket) {
	if s.Inode == 0 {
		return // closed by its application
	}
	at := backendKey{s.Remote, lbmap.Protocol(s.Protocol)}
	hasEntries := l.programs.sockets[s.Cookie] != nil
	if l.dryRun || !hasEntries {
		l.done[uint64(s.Inode)] = true
	}
	if hasEntries {
		l.programs.seen[s.Cookie] = &sighting{uint16(s.Family), at.protocol, at.addr}
	}
	if l.withoutEntry != nil && l.backends[at] && !l.programs.has(s.Cookie, at.addr) {
		l.withoutEntry[at]++
	}
}

// sight notes a socket by its descriptor. If the kernel does not list it, not even in the namespace that
// only the socket itself may keep, it is connected to nobody.
func (l *lister) sight(fd int, cookie uint64) error {
	if l.programs.seen[cookie] != nil {
		return nil
	}
	ns, err := netns.OfSocket(fd)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := l.list(ns); err != nil || l.programs.seen[cookie] != nil {
		return err
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	l.programs.seen[cookie] = &sighting{family: uint16(family), protocol: lbmap.Protocol(protocol)}
	return nil
}
