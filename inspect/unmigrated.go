// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/netns"
	"github.com/revsk/revsk/internal/sockdiag"
	"github.com/revsk/revsk/lbmap"
)

// entry is what the hash has of a socket that is not ended: its cookie, and the peer.
type entry struct {
	cookie uint64
	peer   netip.AddrPort
}

// unmigrated counts the sockets that are connected to one of the backends, of which the hash says that they came there by
// the service, and which hold no tuple for it themselves. The hash says that of a peer, not of a connection: the
// socket may be connected to the backend itself, and have sent to the service. So they are not destroyed.
func (t *termination) unmigrated(ctx context.Context) (int, error) {
	open := make(map[entry]bool)
	for _, m := range []*ebpf.Map{t.maps.Hash4, t.maps.Hash6} {
		if m == nil {
			continue
		}
		if err := t.readHash(m, open); err != nil {
			return 0, fmt.Errorf("reading the hash: %w", err)
		}
	}
	if len(open) == 0 {
		return 0, nil
	}
	held := t.meant
	held.Connected = false
	for s, err := range t.reader.Sockets(ctx, held) {
		if err != nil {
			return 0, err
		}
		for _, tuple := range s.Tuples() {
			delete(open, entry{s.Cookie, tuple.Peer})
		}
	}
	if len(open) == 0 {
		return 0, nil
	}
	return t.countConnected(ctx, open)
}

// readHash adds the entries whose peer and service are meant.
func (t *termination) readHash(m *ebpf.Map, open map[entry]bool) error {
	type of4 struct {
		Cookie uint64
		Addr   [4]byte
		Port   [2]byte
		_      [2]byte
	}
	type of6 struct {
		Cookie uint64
		Addr   [16]byte
		Port   [2]byte
		_      [6]byte
	}
	add := func(cookie uint64, peer, service netip.AddrPort) {
		// One that a hook has ended names the peer itself, and no service.
		if peer != service && t.meantAnyProtocol(peer, service) {
			open[entry{cookie, peer}] = true
		}
	}
	if m.KeySize() == lbmap.ReverseSKKey4Size {
		return batch.Each(m, func(k of4, v [lbmap.ReverseSKValue4Size]byte) {
			add(k.Cookie, addrPort(k.Addr[:], k.Port[:]), addrPort(v[0:4], v[4:6]))
		})
	}
	return batch.Each(m, func(k of6, v [lbmap.ReverseSKValue6Size]byte) {
		add(k.Cookie, addrPort(k.Addr[:], k.Port[:]), addrPort(v[0:16], v[16:18]))
	})
}

func addrPort(addr, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}

// meantAnyProtocol is for entries, which do not say of which protocol their socket is.
func (t *termination) meantAnyProtocol(peer, service netip.AddrPort) bool {
	for _, p := range diagProtocols {
		if t.meant.Backends.Has(peer, p) && t.meant.Service.Matches(service, p) {
			return true
		}
	}
	return false
}

var diagProtocols = []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDP}

// countConnected counts the sockets of entries that are connected to their peer. Where the kernel cannot say that, all of
// them count.
func (t *termination) countConnected(ctx context.Context, open map[entry]bool) (int, error) {
	namespaces, err := netns.All(ctx)
	if err != nil {
		return 0, err
	}
	defer namespaces.Close()
	ports := make(map[uint16]bool)
	for e := range open {
		ports[e.peer.Port()] = true
	}
	found := 0
	for _, ns := range namespaces {
		err := ns.Do(func() error {
			for port := range ports {
				for _, protocol := range diagProtocols {
					for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
						sockets, err := sockdiag.List(family, int(protocol), port)
						if err != nil {
							return err
						}
						for _, s := range sockets {
							if s.Inode != 0 && open[entry{s.Cookie, s.Remote}] && t.meant.Backends.Has(s.Remote, protocol) {
								found++
							}
						}
					}
				}
			}
			return nil
		})
		if errors.Is(err, sockdiag.ErrNotSupported) {
			return len(open), nil
		}
		if err != nil {
			return 0, fmt.Errorf("network namespace %d: %w", ns.Inode, err)
		}
	}
	return found, nil
}
