// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	storesNothing = "it stores no tuples"
	oneEntry      = "the hash has one entry for a socket and a backend"
)

// otherPort is the same address with another port.
func otherPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), a.Port()+1)
}

func TestReconnect(t *testing.T) {
	hold(t, udp,
		rule{name: "to another service goes to its backend, and the application sees that service", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			s.connected(x, a)
			x.connect(b.front)
			s.connected(x, b)
			x.connect(a.front)
			s.connected(x, a)
			s.mayLeak = true // in legacy mode
		}},
		rule{name: "to the same service changes nothing", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			for range 3 {
				x.connect(a.front)
				s.connected(x, a)
			}
			assert.Equal(s, 1, x.tuples())
			assert.Equal(s, s.before.Stored+1, s.counters().Stored)
			assert.Equal(s, s.before.Updated, s.counters().Updated)
		}},
		rule{name: "to another service with the same backend shows the latest", play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			x.connect(b.front)
			s.connected(x, b)
			if s.mode != legacy {
				assert.Equal(s, 1, x.tuples())
				assert.Equal(s, s.before.Updated+1, s.counters().Updated)
			}
		}},
		rule{name: "to an address of no service shows that address", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.connect(s.plainServer())
			same(s, s.plainServer(), x.peername(), "getpeername")
			s.talks(x, s.plainServer(), s.plainServer())
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to the backend's own address ends the mapping", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.connect(a.backend)
			same(s, a.backend, x.peername(), "getpeername")
			s.talks(x, a.backend, a.backend)
			assert.Nil(s, x.conn())
			assert.Equal(s, s.before.DroppedDirect+1, s.counters().DroppedDirect)
		}},
		rule{name: "to the own address of a backend that was sent to ends the mapping", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			x.connect(a.backend)
			same(s, a.backend, x.peername(), "getpeername")
			s.talks(x, a.backend, a.backend)
			assert.Zero(s, x.tuples())
		}},
		rule{name: "to another backend's own address leaves the mapping", notLegacy: storesNothing, play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			q := s.queue(x, a.front)
			x.connect(b.backend)
			s.heard(x, q, a.backend, a.front)
			assert.NotNil(s, x.conn())
		}},
		rule{name: "to the service of a backend that was sent to drops what the send left", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			s.asksService(x, b)
			x.connect(a.front)
			s.connected(x, a)
			assert.Equal(s, 1, x.tuples())
			assert.Equal(s, s.before.DroppedReplaced+1, s.counters().DroppedReplaced)
		}},
		rule{name: "rejected for want of a backend changes nothing", play: func(s *scene) {
			a, none := s.service(), s.serviceWithout()
			x := s.socket()
			x.connect(a.front)
			before := x.conn()
			s.rejectedNoBackend(x.tryConnect(none.front))
			s.connected(x, a)
			assert.Equal(s, before, x.conn())
			assert.Zero(s, x.peers())
		}},
		rule{name: "rejected by the kernel keeps the old association and its service address", play: func(s *scene) {
			a, far := s.service(), s.serviceTo(s.unreachable())
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			s.connected(x, a)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			s.connected(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "rejected by the kernel keeps the service address whatever is sent elsewhere", play: func(s *scene) {
			a, b, far := s.service(), s.service(), s.serviceTo(s.unreachable())
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			x.sendTo(b.front, "elsewhere")
			s.connected(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "rejected by the kernel keeps the service address though another service was used for a send to the same backend", notLegacy: oneEntry, play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			far := s.serviceTo(s.unreachable())
			x := s.socket()
			x.connect(a.front)
			x.sendTo(b.front, "by another service")
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			same(s, a.front, x.peername(), "getpeername")
		}},
		rule{name: "rejected by the kernel for one service after the other keeps the service address", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			for _, far := range []*service{s.serviceTo(s.unreachable()), s.serviceTo(otherPort(s.unreachable())), s.serviceTo(s.unreachable())} {
				require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
				s.connected(x, a)
			}
			if s.mode != legacy {
				assert.Equal(s, 3, x.tuples(), "what the kernel has rejected is kept once for each backend")
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "after the kernel rejected one goes to the new service", play: func(s *scene) {
			a, b, far := s.service(), s.service(), s.serviceTo(s.unreachable())
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			x.connect(b.front)
			s.connected(x, b)
			s.mayLeak = s.mode == legacy
		}},
	)
}

func TestFormerConnection(t *testing.T) {
	// Each leaves the connection to a service while an answer from its backend is queued.
	ways := []struct {
		name  string
		leave func(s *scene, x *socket)
	}{
		{"another service", func(s *scene, x *socket) { x.connect(s.service().front) }},
		{"an address of no service", func(s *scene, x *socket) { x.connect(s.plainServer()) }},
		{"a service that cannot be reached", func(s *scene, x *socket) {
			require.ErrorIs(s, x.tryConnect(s.serviceTo(s.unreachable()).front), unix.ENETUNREACH)
		}},
		{"nothing (AF_UNSPEC)", func(_ *scene, x *socket) { x.disconnect() }},
	}
	for _, way := range ways {
		hold(t, udp, rule{name: "datagrams queued from it keep its service address after connecting to " + way.name, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			q := s.queue(x, netip.AddrPort{})
			way.leave(s, x)
			s.heard(x, q, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}})
	}
	hold(t, udp,
		rule{name: "is remembered for each of many", play: func(s *scene) {
			const n = 12
			x := s.socket()
			var asked []string
			for i := range n {
				x.connect(s.service().front)
				asked = append(asked, s.question())
				x.send(asked[i])
				require.Eventually(s, func() bool { return queued(s, x) == i+1 }, patience, tick)
			}
			for i, a := range s.services {
				s.heard(x, asked[i], a.backend, a.front)
			}
			if s.mode != legacy {
				assert.Equal(s, n, x.tuples())
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "that was sent to since keeps the latest service", play: func(s *scene) {
			a, c := s.service(), s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			q := s.queue(x, b.front)
			x.connect(c.front)
			s.heard(x, q, a.backend, b.front)
			s.connected(x, c)
			if s.mode != legacy {
				assert.Equal(s, 3, x.tuples(), "the connection, the former one, and what was sent")
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "comes back by connecting to it again", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			for range 4 {
				for _, svc := range []*service{a, b} {
					x.connect(svc.front)
					s.connected(x, svc)
				}
			}
			if s.mode != legacy {
				assert.Equal(s, 2, x.tuples())
			}
			s.mayLeak = s.mode == legacy
		}},
	)
}

func TestDisconnect(t *testing.T) {
	hold(t, either,
		rule{name: "leaves no peer", play: func(s *scene) {
			x := s.socket()
			x.connect(s.service().front)
			x.disconnect()
			_, err := x.tryPeername()
			assert.ErrorIs(s, err, unix.ENOTCONN)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "and connecting to another service shows that one", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			x.disconnect()
			x.connect(b.front)
			s.connected(x, b)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "and connecting to the backend's own address shows the backend", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.disconnect()
			x.connect(a.backend)
			same(s, a.backend, x.peername(), "getpeername")
			s.talks(x, a.backend, a.backend)
			assert.Zero(s, x.tuples())
		}},
	)
	hold(t, tcp, rule{name: "and connecting elsewhere leaves one tuple, for a stream has no queue of former peers", notLegacy: storesNothing, play: func(s *scene) {
		x := s.socket()
		for range 5 {
			x.connect(s.service().front)
			x.disconnect()
		}
		assert.Equal(s, 1, x.tuples())
		assert.Equal(s, s.before.DroppedReplaced+4, s.counters().DroppedReplaced)
	}})
}

// queued counts the datagrams to be received, which it leaves in place.
func queued(s *scene, x *socket) int {
	s.Helper()
	require.NoError(s, unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0))
	defer func() {
		require.NoError(s, unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1))
	}()
	var seen []string
	for {
		payload, _, err := x.tryReceive(unix.MSG_PEEK | unix.MSG_DONTWAIT)
		if err != nil {
			require.ErrorIs(s, err, unix.EAGAIN)
			return len(slices.Compact(seen))
		}
		seen = append(seen, payload)
	}
}
