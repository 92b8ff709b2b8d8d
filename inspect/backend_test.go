// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// connectedTo is a socket with a connection to a backend.
func connectedTo(backend string, protocol lbmap.Protocol) Socket {
	peer := netip.MustParseAddrPort(backend)
	return Socket{
		Protocol: protocol, State: StateEstablished, Peer: peer, Inode: 1,
		Conn: &revnat.Tuple{Peer: peer, Service: netip.MustParseAddrPort("10.96.0.1:80")},
	}
}

func TestABackendIsGoneThatIsInTheMapsNoMore(t *testing.T) {
	d := newDatapath(t)
	upsert := func(s lbmap.Service) {
		_, err := lbmap.NewWriter(&d.tables).Upsert(t.Context(), s)
		require.NoError(t, err)
	}
	front := func(port uint16, p lbmap.Protocol) lbmap.Frontend {
		return lbmap.Frontend{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), port), Protocol: p}
	}
	backend := func(addr string, p lbmap.Protocol) Backend { return Backend{netip.MustParseAddrPort(addr), p} }
	connected := []Backend{
		backend("127.0.0.1:1", lbmap.ProtocolTCP), // present
		backend("127.0.0.1:1", lbmap.ProtocolUDP),
		backend("127.0.0.1:2", lbmap.ProtocolTCP), // present, terminating
		backend("127.0.0.1:3", lbmap.ProtocolUDP), // present for any protocol
		backend("127.0.0.1:4", lbmap.ProtocolTCP), // an L7 proxy
		backend("[::1]:4", lbmap.ProtocolTCP),     // the same
		backend("127.0.0.2:4", lbmap.ProtocolTCP),
		backend("[::1]:1", lbmap.ProtocolTCP),
	}

	_, err := GoneBackends(t.Context(), connected, &d.tables)
	require.ErrorIs(t, err, ErrNoBackends)
	gone, err := GoneBackends(t.Context(), nil, &d.tables)
	require.NoError(t, err, "nothing to decide")
	require.Empty(t, gone)

	upsert(lbmap.Service{Frontend: front(1, lbmap.ProtocolTCP), RevNat: 1, Backends: []lbmap.Backend{
		{AddrPort: netip.MustParseAddrPort("127.0.0.1:1"), Protocol: lbmap.ProtocolTCP},
		{AddrPort: netip.MustParseAddrPort("127.0.0.1:2"), Protocol: lbmap.ProtocolTCP, State: lbmap.BackendTerminating},
	}})
	upsert(lbmap.Service{Frontend: front(3, lbmap.ProtocolAny), RevNat: 3, Backends: []lbmap.Backend{
		{AddrPort: netip.MustParseAddrPort("127.0.0.1:3"), Protocol: lbmap.ProtocolAny},
	}})
	upsert(lbmap.Service{Frontend: front(4, lbmap.ProtocolTCP), RevNat: 4, Flags: lbmap.FlagL7LoadBalancer, L7ProxyPort: 4})
	gone, err = GoneBackends(t.Context(), connected, &d.tables)
	require.NoError(t, err)
	assert.Equal(t, []Backend{
		{netip.MustParseAddrPort("127.0.0.1:1"), lbmap.ProtocolUDP},
		{netip.MustParseAddrPort("127.0.0.2:4"), lbmap.ProtocolTCP},
		{netip.MustParseAddrPort("[::1]:1"), lbmap.ProtocolTCP},
	}, gone)

	four := lbmap.Tables{Services4: d.tables.Services4, Backends4: d.tables.Backends4}
	_, err = GoneBackends(t.Context(), connected, &four)
	assert.ErrorIs(t, err, lbmap.ErrNoMap, "no map for the IPv6 backend")
	_, err = GoneBackends(t.Context(), connected[:5], &four)
	assert.NoError(t, err)
}

func TestAConnectionIsThatToTheActualPeer(t *testing.T) {
	base := connectedTo("127.0.0.1:1", lbmap.ProtocolTCP)
	for _, state := range []State{unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_SYN_SENT, unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_CLOSE_WAIT} {
		s := base
		s.State = state
		assert.Same(t, base.Conn, s.Connection(), state)
	}
	for _, state := range []State{unix.BPF_TCP_CLOSE, unix.BPF_TCP_LISTEN, unix.BPF_TCP_TIME_WAIT, unix.BPF_TCP_NEW_SYN_RECV} {
		s := base
		s.State = state
		assert.Nil(t, s.Connection(), state)
	}
	for name, change := range map[string]func(s *Socket){
		"another peer":   func(s *Socket) { s.Peer = netip.MustParseAddrPort("127.0.0.1:2") },
		"no peer":        func(s *Socket) { s.Peer = netip.AddrPort{} },
		"no application": func(s *Socket) { s.Inode = 0 },
		"no tuple":       func(s *Socket) { s.Conn = nil },
		"merely sent to": func(s *Socket) { s.Peers, s.Conn = []revnat.Tuple{*s.Conn}, nil },
		"another's former": func(s *Socket) {
			p := *s.Conn
			p.Peer = netip.MustParseAddrPort("127.0.0.1:3")
			s.Former, s.Conn = &p, nil
		},
	} {
		s := base
		change(&s)
		assert.Nil(t, s.Connection(), name)
	}
	former := base
	former.Former = base.Conn
	former.Conn = &revnat.Tuple{Peer: netip.MustParseAddrPort("127.0.0.1:2")}
	assert.Same(t, base.Conn, former.Connection())
}

// What a send has left of a peer is no connection, though other connects to others were overtaken.
func TestWhatWasSentToIsAConnectionOnlyIfItWasOvertaken(t *testing.T) {
	tuple := revnat.Tuple{Peer: netip.MustParseAddrPort("127.0.0.1:1"), Service: netip.MustParseAddrPort("10.96.0.1:1")}
	other := tuple
	other.Peer, other.Overtaken = netip.MustParseAddrPort("127.0.0.1:2"), true
	s := connectedTo("127.0.0.1:1", lbmap.ProtocolUDP)
	s.Conn, s.Peers = nil, []revnat.Tuple{tuple, other}
	assert.Nil(t, s.Connection())
	s.Peers[0].Overtaken = true
	assert.Same(t, &s.Peers[0], s.Connection())
	roles := make(map[netip.AddrPort]Role)
	for role, t := range s.Tuples() {
		roles[t.Peer] = role
	}
	assert.Equal(t, map[netip.AddrPort]Role{tuple.Peer: RoleConnected, other.Peer: RoleSent}, roles)
	former := tuple
	s.Former = &former
	assert.Same(t, s.Former, s.Connection(), "the former connection before what was overtaken")
}
