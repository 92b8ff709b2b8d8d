// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestConnect(t *testing.T) {
	hold(t, either,
		rule{name: "to a service goes to its backend, and the application sees the service", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			s.connected(x, a)
		}},
		rule{name: "to a service is remembered with all that is known of it", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			tuple := x.conn()
			require.NotNil(s, tuple)
			assert.Equal(s, a.backend, tuple.Peer)
			assert.Equal(s, a.front, tuple.Service)
			assert.Equal(s, a.revNat, tuple.RevNATIndex)
			assert.False(s, tuple.Migrated)
			assert.NotZero(s, tuple.BackendID)
			assert.InDelta(s, uptime(s.T).Seconds(), tuple.Time.Seconds(), 60)
		}},
		rule{name: "to an address of no service is left alone", play: func(s *scene) {
			x := s.socket()
			x.connect(s.plainServer())
			same(s, s.plainServer(), x.peername(), "getpeername")
			s.talks(x, s.plainServer(), s.plainServer())
			assert.Zero(s, x.tuples())
		}},
		rule{name: "to a backend's own address is left alone", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.backend)
			same(s, a.backend, x.peername(), "getpeername")
			s.talks(x, a.backend, a.backend)
			assert.Zero(s, x.tuples())
		}},
		rule{name: "to a service without backends is rejected with EHOSTUNREACH and counted", play: func(s *scene) {
			none := s.serviceWithout()
			x := s.socket()
			s.rejectedNoBackend(x.tryConnect(none.front))
			_, err := x.tryPeername()
			assert.ErrorIs(s, err, unix.ENOTCONN)
			assert.Zero(s, x.tuples())
			s.counted(s.before.RejectedNoBackend, s.counters().RejectedNoBackend)
		}},
		rule{name: "to a service whose backend is its own address is still a translation", play: func(s *scene) {
			own := s.ownAddress()
			a := s.serviceAt(own, own)
			x := s.socket()
			x.connect(a.front)
			s.connected(x, a)
			if s.mode != legacy {
				assert.NotNil(s, x.conn())
			}
		}},
		rule{name: "to a service of another protocol is left alone", play: func(s *scene) {
			a := s.service()
			s.delete(a)
			other := *a
			other.protocol = unix.IPPROTO_TCP + unix.IPPROTO_UDP - s.protocol
			s.publish(&other)
			defer s.delete(&other)
			x := s.socket()
			assert.ErrorIs(s, x.tryConnect(a.front), unix.ENETUNREACH)
			assert.Zero(s, x.tuples())
		}},
	)
}
