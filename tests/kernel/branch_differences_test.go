// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// The tests TestBranchDifference… show what docs/differences.md lists: in legacy mode the answer of the
// reference, in the other modes the one that is right.

// one is legacy's answer in legacy mode, else ours.
func one[T any](s *scene, legacys, ours T) T {
	if s.mode == legacy {
		return legacys
	}
	return ours
}

func TestBranchDifferenceGetpeernameAfterSend(t *testing.T) {
	hold(t, udp, rule{name: "a send to another service of the same backend: getpeername", play: func(s *scene) {
		a := s.service()
		b := s.serviceTo(a.backend)
		x := s.socket()
		x.connect(a.front)
		s.asksService(x, b)
		same(s, one(s, b.front, a.front), x.peername(), "getpeername")
	}})
}

func TestBranchDifferenceDirectConnect(t *testing.T) {
	hold(t, udp, rule{name: "a connect to the backend's own address: getpeername", play: func(s *scene) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		x.connect(a.backend)
		same(s, one(s, a.front, a.backend), x.peername(), "getpeername")
		s.talks(x, a.backend, one(s, a.front, a.backend))
	}})
	hold(t, tcp, rule{name: "the same for a stream, which disconnects first", play: func(s *scene) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		x.disconnect()
		x.connect(a.backend)
		same(s, one(s, a.front, a.backend), x.peername(), "getpeername")
	}})
}

func TestBranchDifferenceDirectSend(t *testing.T) {
	hold(t, udp, rule{name: "a send to the backend's own address: source of the answer", play: func(s *scene) {
		a := s.service()
		x := s.socket()
		s.asksService(x, a)
		s.asks(x, a.backend, a.backend, one(s, a.front, a.backend))
		s.mayLeak = s.mode == legacy
	}})
}

func TestBranchDifferenceFailedReconnect(t *testing.T) {
	hold(t, udp, rule{name: "the service that could not be reached is taken for that of a direct connect", play: func(s *scene) {
		a := s.service()
		far := s.serviceTo(netip.AddrPortFrom(s.unroutable, firstPort))
		x := s.socket()
		x.connect(a.front)
		require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
		same(s, a.front, x.peername(), "getpeername")

		s.routeTo(s.unroutable)
		x.connect(far.backend)
		same(s, one(s, far.front, far.backend), x.peername(), "getpeername")
		x.close()
		becomes(s, one(s, 1, 0), s.hashEntries, "entries of a closed socket")
		s.mayLeak = s.mode == legacy
	}})
}

// routeTo makes an address one of this host, until the end of the scene.
func (s *scene) routeTo(a netip.Addr) {
	s.Helper()
	route, err := sandbox.MakeLocal(netip.PrefixFrom(a, a.BitLen()))
	require.NoError(s, err)
	s.Cleanup(func() { assert.NoError(s, netlink.RouteDel(route)) })
}

func TestBranchDifferenceLeaks(t *testing.T) {
	for _, way := range []struct {
		name      string
		protocols []int
		leaks     int
		play      func(s *scene, x *socket)
	}{
		{"abort of a datagram socket", udp, 1, func(s *scene, x *socket) {
			x.connect(s.service().front)
			x.abort(x.sockname(), s.actualPeer(x))
		}},
		{"connect(AF_UNSPEC), datagrams and streams", either, 1, func(s *scene, x *socket) {
			x.connect(s.service().front)
			x.disconnect()
		}},
		{"connect elsewhere", udp, 1, func(s *scene, x *socket) {
			x.connect(s.service().front)
			x.connect(s.service().front)
		}},
		{"sends of an unconnected socket", udp, 5, func(s *scene, x *socket) {
			for range 5 {
				s.asksService(x, s.service())
			}
		}},
	} {
		hold(t, way.protocols, rule{name: way.name, play: func(s *scene) {
			x := s.socket()
			way.play(s, x)
			x.close()
			becomes(s, one(s, way.leaks, 0), s.hashEntries, "entries of a closed socket")
			s.mayLeak = s.mode == legacy
		}})
	}
}

func TestBranchDifferenceEviction(t *testing.T) {
	hold(t, udp, rule{name: "a live socket, when others have filled the hash: getpeername", notReference: touches, play: func(s *scene) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		s.fillHash(a)
		same(s, one(s, a.backend, a.front), x.peername(), "getpeername")
		s.talks(x, a.backend, one(s, a.backend, a.front))
	}})
}

// fillHash adds twice as many entries as the hash has room for, of sockets that do not exist.
func (s *scene) fillHash(a *service) {
	s.Helper()
	key, err := lbmap.ReverseSKKey{Backend: a.backend}.MarshalBinary()
	require.NoError(s, err)
	value, err := lbmap.ReverseSKValue{Service: a.front, RevNat: a.revNat}.MarshalBinary()
	require.NoError(s, err)
	if a.backend.Addr().Is4() {
		fillWith(s, lbmap.ReverseSK4Map, [lbmap.ReverseSKKey4Size]byte(key), [lbmap.ReverseSKValue4Size]byte(value))
	} else {
		fillWith(s, lbmap.ReverseSK6Map, [lbmap.ReverseSKKey6Size]byte(key), [lbmap.ReverseSKValue6Size]byte(value))
	}
}

func fillWith[K [lbmap.ReverseSKKey4Size]byte | [lbmap.ReverseSKKey6Size]byte, V any](s *scene, name string, key K, value V) {
	s.Helper()
	m := datapath.Map(name)
	keys, values := make([]K, 2*legacyEntries), make([]V, 2*legacyEntries)
	for i := range keys {
		keys[i], values[i] = key, value
		for b := range 8 { // the cookie, more than any socket's
			keys[i][b] = byte((1<<63 | uint64(i)) >> (8 * b))
		}
	}
	// Each CPU has entries that the others cannot evict.
	var usual unix.CPUSet
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(s, unix.SchedGetaffinity(0, &usual))
	defer func() { assert.NoError(s, unix.SchedSetaffinity(0, &usual)) }()
	for cpu := range runtime.NumCPU() {
		var one unix.CPUSet
		one.Set(cpu)
		require.NoError(s, unix.SchedSetaffinity(0, &one))
		_, err := m.BatchUpdate(keys, values, nil)
		require.NoError(s, err, name)
	}
	s.Cleanup(func() {
		var cursor ebpf.MapBatchCursor
		_, err := m.BatchLookupAndDelete(&cursor, keys, values, nil)
		assert.ErrorIs(s, err, ebpf.ErrKeyNotExist, "the end of the map")
	})
}

const protocolMPTCP = 262

// mptcpSocket is not TCP's; the one that connects is the kernel's.
func (s *scene) mptcpSocket() *socket {
	s.Helper()
	fd, err := unix.Socket(s.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocolMPTCP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		oldkernel.SkipWithout(s, "CONFIG_MPTCP", oldkernel.Has(s, "/proc/sys/net/mptcp"))
	}
	require.NoError(s, err)
	return &socket{T: s.T, family: s.family, fd: fd, protocol: protocolMPTCP}
}

func TestBranchDifferenceKernelSockets(t *testing.T) {
	hold(t, tcp, rule{name: "the kernel's own sockets have no release hook: nothing is left in storage, an entry in the hash of mode legacy", play: func(s *scene) {
		if _, err := netlink.SocketDiagTCP(uint8(s.domain)); errors.Is(err, unix.ENOENT) {
			oldkernel.SkipWithout(s, "sock_diag (the module tcp_diag)", false)
		}
		x := s.mptcpSocket()
		defer x.close()
		a := s.service()
		x.connect(a.front)
		s.counted(s.before.Translated, s.counters().Translated)
		s.talks(x, a.backend, a.front)
		x.close()
		require.Eventually(s, func() bool { return len(s.establishedTo(a.backend)) == 0 }, patience, tick)
		assert.Equal(s, s.before.Released, s.counters().Released)
		if s.mode == legacy || !haveMPTCP(s) {
			// To the hooks it was a connection like any other.
			becomes(s, map[loader.Mode]int{loader.ModeStorage: 0, loader.ModeMirror: 1, loader.ModeDual: 1, legacy: 1}[s.mode], s.hashEntries, "entries of a closed socket")
			s.before, s.mayLeak = s.counters(), true
			return
		}
		becomes(s, 0, s.hashEntries, "entries of a closed socket")
		assert.Equal(s, s.before.Stored, s.counters().Stored)
	}})
}

// haveMPTCP tells whether the hooks can tell the connections of MPTCP sockets.
func haveMPTCP(s *scene) bool {
	s.Helper()
	have, err := probe.MPTCP()
	require.NoError(s, err)
	return have
}

// establishedTo are the connections to a server, by either end.
func (s *scene) establishedTo(server netip.AddrPort) []*netlink.Socket {
	s.Helper()
	var found []*netlink.Socket
	all, err := netlink.SocketDiagTCP(uint8(s.domain))
	require.NoError(s, err)
	for _, c := range all {
		if c.ID.DestinationPort == server.Port() && c.State == netlink.TCP_ESTABLISHED {
			if a, _ := netip.AddrFromSlice(c.ID.Destination); a.Unmap() == server.Addr() {
				found = append(found, c)
			}
		}
	}
	return found
}
