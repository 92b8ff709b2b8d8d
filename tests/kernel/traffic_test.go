// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

// oneRound opens a socket, talks to services both connected and not, and closes it. It reports errors
// instead of ending the test, so that it can run beside it.
func (s *scene) oneRound(all []*service, seed int) error {
	x, err := newSocket(s.family, s.protocol)
	if err != nil {
		return err
	}
	defer x.close()
	for i, svc := range all {
		if err := asked(x, svc, fmt.Sprintf("%d of %d", i, seed)); err != nil {
			return err
		}
	}
	a, b := all[seed%len(all)], all[(seed+1)%len(all)]
	for _, svc := range []*service{a, b} {
		if err := x.tryConnect(svc.front); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if err := x.shows(svc); err != nil {
			return err
		}
		if err := asked(x, svc, "connected"); err != nil {
			return err
		}
	}
	return nil
}

// shows checks that the socket is connected to the service, as getpeername has it.
func (x *socket) shows(svc *service) error {
	peer, err := x.tryPeername()
	if err == nil && peer != svc.front {
		err = fmt.Errorf("connected to %v, getpeername shows %v", svc.front, peer)
	}
	return err
}

// asked sends to a service and compares the answer.
func asked(x *socket, svc *service, q string) error {
	if err := x.trySendTo(svc.front, q); err != nil {
		return fmt.Errorf("sendto %v: %w", svc.front, err)
	}
	reply, from, err := x.tryReceive(0)
	if err != nil {
		return fmt.Errorf("receiving from %v: %w", svc.front, err)
	}
	if want := answer(q, svc.backend); reply != want || from != svc.front {
		return fmt.Errorf("received %q from %v, expected %q from %v", reply, from, want, svc.front)
	}
	return nil
}

// legacyMap is the one with the entries for a peer.
func legacyMap(peer netip.AddrPort) *ebpf.Map {
	if peer.Addr().Is4() {
		return datapath.Map(lbmap.ReverseSK4Map)
	}
	return datapath.Map(lbmap.ReverseSK6Map)
}

// putHash writes an entry of the legacy maps.
func (s *scene) putHash(cookie uint64, peer netip.AddrPort, svc *service) {
	s.Helper()
	key := lbmap.ReverseSKKey{Cookie: cookie, Backend: peer}
	require.NoError(s, legacyMap(peer).Put(key, lbmap.ReverseSKValue{Service: svc.front, RevNat: svc.revNat}))
}
