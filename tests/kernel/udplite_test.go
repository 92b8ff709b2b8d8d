// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// UDP-Lite shares the sendmsg, recvmsg, getpeername and sock_release hooks of UDP. Its connect has no
// hook on any kernel, so a connected socket is connected to the service's own address.
func TestUDPLite(t *testing.T) {
	if !haveUDPLite(t) {
		return
	}
	hold(t, []int{unix.IPPROTO_UDPLITE},
		rule{name: "sendmsg to a service goes to its backend, and the answer is from the service", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			if s.mode != legacy {
				assert.Equal(s, 1, x.tuples())
			}
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "sendmsg to the backend's own address ends the mapping", notLegacy: ignoresDirect, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			s.asksService(x, a)
			s.asks(x, a.backend, a.backend, a.backend)
		}},
		rule{name: "connect is either translated and remembered, or not at all", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			err := x.tryConnect(a.front)
			if s.counters().Translated == s.before.Translated {
				// No hook: there is no route to the service.
				assert.ErrorIs(s, err, unix.ENETUNREACH)
				assert.Zero(s, x.tuples())
				return
			}
			require.NoError(s, err)
			same(s, a.front, x.peername(), "getpeername")
		}},
	)
}
