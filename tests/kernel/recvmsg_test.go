// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

func TestRecvmsg(t *testing.T) {
	hold(t, udp,
		rule{name: "from a stranger is left alone", play: func(s *scene) {
			x, stranger := s.bound(1), s.bound(2)
			stranger.sendTo(x.sockname(), "hello")
			_, from := x.receive()
			same(s, stranger.sockname(), from, "source")
		}},
		rule{name: "from a stranger is left alone by a socket that knows services", play: func(s *scene) {
			x, stranger := s.bound(1), s.bound(2)
			for range 5 {
				s.asksService(x, s.service())
			}
			stranger.sendTo(x.sockname(), "hello")
			_, from := x.receive()
			same(s, stranger.sockname(), from, "source")
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "from a backend that the socket never asked is left alone", play: func(s *scene) {
			// x writes to itself by way of the backend: another socket asks in its name.
			a := s.service()
			x := s.bound(1)
			backend := s.socket()
			backend.bind(netip.AddrPortFrom(a.backend.Addr(), 9999))
			a.backend = backend.sockname()
			s.publish(a)
			other := s.socket()
			other.sendTo(a.front, "hello")
			backend.sendTo(x.sockname(), "hello")
			_, from := x.receive()
			same(s, a.backend, from, "source")
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "from another port of a backend is left alone", play: func(s *scene) {
			a := s.service()
			x, backend := s.bound(1), s.socket()
			backend.bind(netip.AddrPortFrom(a.backend.Addr(), 9999))
			s.asksService(x, a)
			backend.sendTo(x.sockname(), "hello")
			_, from := x.receive()
			same(s, backend.sockname(), from, "source")
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "that only peeks sees the service too", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			_, from, err := x.tryReceive(unix.MSG_PEEK)
			require.NoError(s, err)
			same(s, a.front, from, "source")
			s.heard(x, q, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "by recvmsg(2) sees the service too", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.queue(x, a.front)
			var buf [100]byte
			_, _, _, sa, err := unix.Recvmsg(x.fd, buf[:], nil, 0)
			require.NoError(s, err)
			from, err := x.address(sa)
			require.NoError(s, err)
			same(s, a.front, from, "source")
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "without asking for the source works", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			var buf [100]byte
			n, err := unix.Read(x.fd, buf[:])
			require.NoError(s, err)
			assert.Equal(s, answer(q, a.backend), string(buf[:n]))
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "is counted when it reports a service, and only then", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			s.counted(s.before.Reversed, s.counters().Reversed)
			s.asks(x, s.plainServer(), s.plainServer(), s.plainServer())
			s.counted(s.before.Reversed, s.counters().Reversed)
			s.counted(s.before.Translated, s.counters().Translated)
			s.mayLeak = s.mode == legacy
		}},
	)
}

// bound is a socket bound to an address of the host.
func (s *scene) bound(n int) *socket {
	s.Helper()
	x := s.socket()
	x.bind(netip.AddrPortFrom(sandbox.Numbered(s.plain, 100+n), 0))
	return x
}
