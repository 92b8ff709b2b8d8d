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

const ignoresDirect = "it does not know of direct connects and sends"

func TestSendmsg(t *testing.T) {
	hold(t, udp,
		rule{name: "to a service goes to its backend, and the answer is from the service", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to a service is remembered with all that is known of it", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.sendTo(a.front, "question")
			peers := x.peers()
			require.Len(s, peers.Tuples(), 1)
			tuple := peers.Tuples()[0]
			assert.Equal(s, a.backend, tuple.Peer)
			assert.Equal(s, a.front, tuple.Service)
			assert.Equal(s, a.revNat, tuple.RevNATIndex)
			assert.False(s, tuple.Migrated)
			assert.NotZero(s, tuple.BackendID)
			assert.InDelta(s, uptime(s.T).Seconds(), tuple.Time.Seconds(), 60)
			assert.Zero(s, peers.TableCount)
			assert.Nil(s, x.conn())
		}},
		rule{name: "to the same service again changes nothing", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			for range 3 {
				s.asksService(x, a)
			}
			assert.Equal(s, 1, x.tuples())
			assert.Equal(s, s.before.Stored+1, s.counters().Stored)
			assert.Equal(s, s.before.Updated, s.counters().Updated)
		}},
		rule{name: "to several services: each answer is from its own", play: func(s *scene) {
			x := s.socket()
			var asked []string
			for i := range 3 {
				asked = append(asked, s.question())
				x.sendTo(s.service().front, asked[i])
				require.Eventually(s, func() bool { return queued(s, x) == i+1 }, patience, tick)
			}
			for i, a := range s.services {
				s.heard(x, asked[i], a.backend, a.front)
			}
			for _, a := range slices.Backward(s.services) {
				s.asksService(x, a)
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to two services of one backend: the latest wins", play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			s.asksService(x, a)
			s.asksService(x, b)
			s.asksService(x, a)
			q := s.queue(x, b.front)
			s.heard(x, q, b.backend, b.front)
			if s.mode != legacy {
				assert.Equal(s, 1, x.tuples())
				assert.Equal(s, s.before.Updated+3, s.counters().Updated)
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to the backend's own address ends the mapping", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			s.asks(x, a.backend, a.backend, a.backend)
			assert.Zero(s, x.tuples())
			assert.Equal(s, s.before.DroppedDirect+1, s.counters().DroppedDirect)
			s.asksService(x, a)
		}},
		rule{name: "to the own address of a backend that was connected to ends the mapping", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.disconnect()
			s.asks(x, a.backend, a.backend, a.backend)
			assert.Zero(s, x.tuples())
			assert.Equal(s, s.before.DroppedDirect+1, s.counters().DroppedDirect)
		}},
		rule{name: "without an address goes to the connected peer, though that is a service's address by now", notReference: "it translates an IPv6 socket's send to an IPv4 address", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			b := s.service()
			s.serviceAt(a.backend, b.backend)
			for range 3 {
				s.talks(x, a.backend, a.front)
			}
			same(s, a.front, x.peername(), "getpeername")
			plain := s.socket()
			plain.connect(b.backend)
			s.serviceAt(b.backend, a.backend)
			s.talks(plain, b.backend, b.backend)
			same(s, b.backend, plain.peername(), "getpeername")
		}},
		rule{name: "to another backend's own address leaves the mapping", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			x.sendTo(b.backend, "direct")
			s.heard(x, q, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to an address of no service is left alone", play: func(s *scene) {
			x := s.socket()
			s.asks(x, s.plainServer(), s.plainServer(), s.plainServer())
			assert.Zero(s, x.tuples())
		}},
		rule{name: "to a service without backends is rejected with EHOSTUNREACH and changes nothing", play: func(s *scene) {
			a, none := s.service(), s.serviceWithout()
			x := s.socket()
			s.asksService(x, a)
			before := x.peers()
			s.rejectedNoBackend(x.trySendTo(none.front, "lost"))
			assert.Equal(s, before, x.peers())
			s.counted(s.before.RejectedNoBackend, s.counters().RejectedNoBackend)
			s.asksService(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "that the kernel rejects leaves the other services alone", play: func(s *scene) {
			a, far := s.service(), s.serviceTo(s.unreachable())
			x := s.socket()
			s.asksService(x, a)
			assert.ErrorIs(s, x.trySendTo(far.front, "lost"), unix.ENETUNREACH)
			s.asksService(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to a service whose backend is its own address is still a translation", play: func(s *scene) {
			own := s.ownAddress()
			a := s.serviceAt(own, own)
			x := s.socket()
			s.asksService(x, a)
			if s.mode != legacy {
				assert.Equal(s, 1, x.tuples())
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "with sendmmsg translates each message", play: func(s *scene) {
			x := s.socket()
			var to []unix.Sockaddr
			for range 6 {
				to = append(to, s.sockaddr(s.service().front))
			}
			for i, sa := range to {
				// What sendmmsg(2) does, a message at a time.
				_, err := unix.SendmsgN(x.fd, []byte{byte('0' + i)}, nil, sa, 0)
				require.NoError(s, err)
				require.Eventually(s, func() bool { return queued(s, x) == i+1 }, patience, tick)
			}
			for i, a := range s.services {
				s.heard(x, string(byte('0'+i)), a.backend, a.front)
			}
			s.mayLeak = s.mode == legacy
		}},
	)
}

func TestSendmsgOnAConnectedSocket(t *testing.T) {
	hold(t, udp,
		rule{name: "to another service does not change getpeername", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			x.sendTo(b.front, "elsewhere")
			s.connected(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to another service of the same backend does not change getpeername", notLegacy: "it has one entry for both", play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			s.asksService(x, b)
			same(s, a.front, x.peername(), "getpeername")
			assert.Equal(s, 2, x.tuples())
		}},
		rule{name: "to another service of the same backend: the answer is from the latest", play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			s.talks(x, a.backend, a.front)
			s.asksService(x, b)
			s.asksService(x, a)
			s.talks(x, a.backend, a.front)
		}},
		rule{name: "to its peer's own address does not end the connection to the service", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			s.asks(x, a.backend, a.backend, a.front)
			s.connected(x, a)
		}},
		rule{name: "to its peer's own address ends what another send left", notLegacy: "it has one entry for both", play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			s.asksService(x, b)
			s.asks(x, a.backend, a.backend, a.front)
			assert.Equal(s, 1, x.tuples())
			s.connected(x, a)
		}},
		rule{name: "to the address that it is connected to ends what a send to a service left", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.backend)
			s.asksService(x, a)
			s.asks(x, a.backend, a.backend, a.backend)
			assert.Zero(s, x.tuples())
			assert.Zero(s, s.hashEntries())
		}},
		rule{name: "to another service of the same backend, after a reconnect that the kernel rejected, leaves getpeername a service", play: func(s *scene) {
			a, far := s.service(), s.serviceTo(s.unreachable())
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			s.asksService(x, b)
			// The one or the other: there is one tuple for that peer now.
			assert.Contains(s, []netip.AddrPort{a.front, b.front}, x.peername())
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "the same when the connection is remembered in the table", play: func(s *scene) {
			x := s.socket()
			for range 5 {
				s.asksService(x, s.service())
			}
			a, far := s.service(), s.serviceTo(s.unreachable())
			b := s.serviceTo(a.backend)
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			s.connected(x, a)
			s.asksService(x, b)
			assert.Contains(s, []netip.AddrPort{a.front, b.front}, x.peername())
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "the same when the send is remembered in the table", play: func(s *scene) {
			x := s.socket()
			for range 5 {
				s.asksService(x, s.service())
			}
			a, far := s.service(), s.serviceTo(s.unreachable())
			b := s.serviceTo(a.backend)
			x.connect(a.front)
			s.asksService(x, b)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			assert.Contains(s, []netip.AddrPort{a.front, b.front}, x.peername())
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to another service of the same backend, before a reconnect that the kernel rejects, leaves getpeername a service", play: func(s *scene) {
			a, far := s.service(), s.serviceTo(s.unreachable())
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			s.asksService(x, b)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			assert.Contains(s, []netip.AddrPort{a.front, b.front}, x.peername())
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "to its peer's own address does not end the connection after a reconnect that the kernel rejected", play: func(s *scene) {
			a, far := s.service(), s.serviceTo(s.unreachable())
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
			x.sendTo(a.backend, "direct")
			x.readable()
			same(s, a.front, x.peername(), "getpeername")
			s.mayLeak = s.mode == legacy
		}},
	)
}
