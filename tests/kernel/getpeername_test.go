// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestGetpeername(t *testing.T) {
	hold(t, either,
		rule{name: "of a socket that is connected to nothing is ENOTCONN", play: func(s *scene) {
			_, err := s.socket().tryPeername()
			assert.ErrorIs(s, err, unix.ENOTCONN)
		}},
		rule{name: "shows the service as often as it is asked", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			for range 3 {
				same(s, a.front, x.peername(), "getpeername")
			}
		}},
	)
	hold(t, udp,
		rule{name: "of a socket that has only sent is ENOTCONN", play: func(s *scene) {
			x := s.socket()
			s.asksService(x, s.service())
			_, err := x.tryPeername()
			assert.ErrorIs(s, err, unix.ENOTCONN)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "of a direct connection is not changed by a send to a service of that backend", notLegacy: "it has one entry for both", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.backend)
			s.asksService(x, a)
			same(s, a.backend, x.peername(), "getpeername")
		}},
		rule{name: "of a direct connection is not changed by sends to services, whatever else was connected to", notLegacy: "it has one entry for both", play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(b.front)
			x.connect(a.backend)
			s.asksService(x, a)
			same(s, a.backend, x.peername(), "getpeername")
		}},
		rule{name: "does not take a former connection for the present one", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.connect(netip.AddrPortFrom(a.backend.Addr(), 9))
			same(s, netip.AddrPortFrom(a.backend.Addr(), 9), x.peername(), "getpeername")
			s.mayLeak = s.mode == legacy
		}},
	)
	hold(t, tcp,
		rule{name: "of an accepted socket is its client", play: func(s *scene) {
			listener := s.bound(1)
			require.NoError(s, unix.Listen(listener.fd, 1))
			a := s.serviceTo(listener.sockname())
			x := s.socket()
			x.connect(a.front)
			fd, _, err := unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
			require.NoError(s, err)
			accepted := &socket{T: s.T, family: s.family, fd: fd}
			defer accepted.close()
			same(s, x.sockname(), accepted.peername(), "getpeername")
			same(s, listener.sockname(), accepted.sockname(), "getsockname")
			same(s, a.front, x.peername(), "getpeername")
		}},
	)
}
