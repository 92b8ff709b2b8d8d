// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// outdated is what a socket remembers of a backend, by services of before the time without our hooks.
type outdated struct {
	name      string
	connected bool // to that backend, by the kernel; else an answer of it is in the queue
	remember  func(s *scene, x *socket, old, other *service)
}

var outdatedKinds = []outdated{
	{"connection", true, func(s *scene, x *socket, old, other *service) { x.connect(old.front) }},
	{"connection, and sent to by another service", true, func(s *scene, x *socket, old, other *service) {
		x.connect(old.front)
		s.asksService(x, other)
	}},
	{"connected to the backend itself, and sent to", true, func(s *scene, x *socket, old, other *service) {
		x.connect(old.backend)
		s.asksService(x, old)
	}},
	{"connection whose successor the kernel has rejected", true, func(s *scene, x *socket, old, other *service) {
		x.connect(old.front)
		require.Error(s, x.tryConnect(s.serviceTo(s.unreachable()).front))
	}},
	{"the same, and sent to by another service", true, func(s *scene, x *socket, old, other *service) {
		x.connect(old.front)
		s.asksService(x, other)
		require.Error(s, x.tryConnect(s.serviceTo(s.unreachable()).front))
	}},
	{"former connection", false, func(s *scene, x *socket, old, other *service) {
		x.connect(old.front)
		x.send("queued")
		x.readable()
		x.connect(s.service().front)
	}},
	{"sent to", false, func(s *scene, x *socket, old, other *service) { x.sendTo(old.front, "queued") }},
	{"sent to, in a table", false, func(s *scene, x *socket, old, other *service) {
		for range 5 {
			s.asksService(x, s.service())
		}
		x.sendTo(old.front, "queued")
	}},
	{"connection, in a table by another service", true, func(s *scene, x *socket, old, other *service) {
		for range 5 {
			s.asksService(x, s.service())
		}
		x.connect(old.front)
		s.asksService(x, other)
	}},
}

// Other programs have written the hash, so that its entry of a backend is newer than all that the socket remembers
// of it: it takes the place of all that.
func TestMigrateOverWhatIsOutdated(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		holdIn(t, loader.ModeDual, unix.IPPROTO_UDP, func(s *scene) {
			var sockets []*socket
			var newer []*service
			for _, kind := range outdatedKinds {
				old := s.service()
				other := s.serviceTo(old.backend)
				x := s.socket()
				kind.remember(s, x, old, other)
				sockets, newer = append(sockets, x), append(newer, s.serviceTo(old.backend))
			}
			s.setMark(s.later())
			for i, x := range sockets {
				s.hashSays(x, newer[i].backend, newer[i])
			}
			_, err := migrate.Run(s.Context(), migrateOptions(engine))
			require.NoError(s, err)
			assert.Zero(s, s.hashEntries())
			for i, kind := range outdatedKinds {
				s.Log(kind.name)
				x := sockets[i]
				if kind.connected {
					same(s, newer[i].front, x.peername(), "getpeername")
					s.talks(x, newer[i].backend, newer[i].front)
				} else {
					s.heard(x, "queued", newer[i].backend, newer[i].front)
				}
			}
		})
	})
}

// later is a time for setMark after all that sockets remember.
func (s *scene) later() uint32 {
	var now unix.Timespec
	require.NoError(s, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint32(now.Nano()>>30) + 1
}
