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
	sockets  *socketEntries
	backends map[backendKey]bool
	lacking  map[connectedSocket]bool
	listed   map[uint64]bool // network namespaces, by inode
	// Sockets that were listed, by inode: all of them, and those without entries.
	known, without map[uint64]bool
}

func newLister(x *socketEntries) *lister {
	return &lister{sockets: x, listed: make(map[uint64]bool), known: make(map[uint64]bool), without: make(map[uint64]bool)}
}

// noteLacking has sockets noted that are connected to one of the backends and have no entry for it.
func (l *lister) noteLacking(backends []backendKey, into map[connectedSocket]bool) {
	l.backends, l.lacking = make(map[backendKey]bool), into
	for _, b := range backends {
		l.backends[b] = true
	}
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
	number, hasEntries := l.sockets.number(s.Cookie)
	l.known[uint64(s.Inode)] = true
	if hasEntries {
		l.sockets.sightings()[number] = sighting{true, uint16(s.Family), at.protocol, at.addr}
	} else {
		l.without[uint64(s.Inode)] = true
	}
	if l.backends[at] && !(hasEntries && l.sockets.has(number, at.addr)) {
		l.lacking[connectedSocket{keyFor(s.Cookie, at.addr), at.protocol}] = true
	}
}

// sightIfWanted notes a socket by its descriptor if it has entries.
func (l *lister) sightIfWanted(fd int) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	number, ok := l.sockets.number(cookie)
	if err != nil || !ok {
		return nil // of a kind without cookie, or without entries
	}
	return l.sight(fd, number)
}

// sight notes a socket by its descriptor. If the kernel does not list it, not even in the namespace that
// only the socket itself may keep, it is connected to nobody.
func (l *lister) sight(fd, number int) error {
	seen := &l.sockets.sightings()[number]
	if seen.seen {
		return nil
	}
	ns, err := netns.OfSocket(fd)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := l.list(ns); err != nil || seen.seen {
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
	*seen = sighting{seen: true, family: uint16(family), protocol: lbmap.Protocol(protocol)}
	return nil
}
