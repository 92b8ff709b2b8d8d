// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/revsk/revsk/loader"
)

// Each makes the tuples of a service stale.
var ways = []struct {
	name string
	end  func(s *scene, a *service)
}{
	{"is deleted", func(s *scene, a *service) { s.delete(a) }},
	{"is made again with another reverse-NAT index", func(s *scene, a *service) {
		s.delete(a)
		a.revNat += 1000
		s.publish(a)
	}},
	{"has lost its backends", func(s *scene, a *service) {
		again := *a
		again.backend = s.unset()
		s.publish(&again)
	}},
}

func TestStaleTuples(t *testing.T) {
	for _, way := range ways {
		hold(t, udp,
			rule{name: "recvmsg drops what was sent to when the service " + way.name, play: func(s *scene) {
				a := s.service()
				x := s.socket()
				q := s.queue(x, a.front)
				way.end(s, a)
				s.heard(x, q, a.backend, a.backend)
				s.droppedStale(x)
			}},
			rule{name: "recvmsg drops what is connected to when the service " + way.name, play: func(s *scene) {
				a := s.service()
				x := s.socket()
				x.connect(a.front)
				q := s.question()
				x.send(q)
				x.readable()
				way.end(s, a)
				s.heard(x, q, a.backend, a.backend)
				s.droppedStale(x)
			}},
			rule{name: "getpeername drops a connection that the kernel kept when the service " + way.name, play: func(s *scene) {
				a, far := s.service(), s.serviceTo(s.unreachable())
				x := s.socket()
				x.connect(a.front)
				assert.Error(s, x.tryConnect(far.front))
				way.end(s, a)
				same(s, a.backend, x.peername(), "getpeername")
				if s.mode != legacy {
					assert.Equal(s, 1, x.tuples())
					assert.Equal(s, s.before.DroppedStale+1, s.counters().DroppedStale)
				}
				if s.mode == loader.ModeDual {
					assert.Equal(s, 1, s.hashEntries(), "entries in the legacy maps: that of the rejected connect")
				}
				s.mayLeak = s.mode == legacy
			}},
			rule{name: "recvmsg falls back to the connection when the service sent to " + way.name, notLegacy: "it has one entry for both", play: func(s *scene) {
				a := s.service()
				b := s.serviceTo(a.backend)
				x := s.socket()
				x.connect(a.front)
				q := s.queue(x, b.front)
				way.end(s, b)
				s.heard(x, q, a.backend, a.front)
				assert.Equal(s, 1, x.tuples())
				s.connected(x, a)
			}},
		)
		hold(t, either, rule{name: "getpeername drops what is connected to when the service " + way.name, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			way.end(s, a)
			same(s, a.backend, x.peername(), "getpeername")
			s.droppedStale(x)
			s.talks(x, a.backend, a.backend)
		}})
	}
	hold(t, udp,
		rule{name: "a service with another backend is not stale", play: func(s *scene) {
			a := s.service()
			old := a.backend
			x := s.socket()
			q := s.queue(x, a.front)
			a.backend = s.backendAt(50)
			s.publish(a)
			s.heard(x, q, old, a.front)
			s.asksService(x, a)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "a service that came back with its index is not stale", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			s.delete(a)
			s.publish(a)
			s.connected(x, a)
		}},
		rule{name: "what was dropped does not come back with the service", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			s.delete(a)
			same(s, a.backend, x.peername(), "getpeername")
			s.publish(a)
			same(s, a.backend, x.peername(), "getpeername")
			x.connect(a.front)
			s.connected(x, a)
		}},
	)
}

// droppedStale checks that the socket's only tuple is gone and was counted.
func (s *scene) droppedStale(x *socket) {
	s.Helper()
	if s.mode == legacy {
		return
	}
	assert.Zero(s, x.tuples())
	assert.Equal(s, s.before.DroppedStale+1, s.counters().DroppedStale)
	assert.Zero(s, s.hashEntries(), "entries in the legacy maps")
}
