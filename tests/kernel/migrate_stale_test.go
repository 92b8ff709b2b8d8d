// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// What a socket is connected to is moved whatever has become of the service: it finds the service when that is back.
func TestMigrateMovesAConnectionWhoseService(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			migrating(t, either, func(s *scene, engine migrate.Engine) {
				a := s.service()
				x := s.socket()
				x.connect(a.front)
				before := *a
				way.end(s, a)
				r := s.migrates(engine)
				assert.Equal(s, migrate.Counts{Entries: 1, MovedConn: 1}, r.Counts)
				s.deleteIfThere(a)
				s.publish(&before)
				s.connected(x, &before)
			})
		})
	}
}

// What a socket has sent to is judged twice: a service that is without backends for a moment loses nobody.
func TestMigrateLooksAtServicesTwice(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		a, gone := s.service(), s.service()
		x := s.socket()
		s.asksService(x, gone)
		q := s.queue(x, a.front)
		s.delete(gone)
		s.withoutBackend(a)
		opts := migrateOptions(engine)
		opts.BeforeStep = func(step string) error {
			if step == "look at services again" {
				s.publish(a)
			}
			return nil
		}
		r, err := migrate.Run(s.Context(), opts)
		require.NoError(s, err)
		assert.Equal(s, migrate.Counts{Entries: 2, MovedPeers: 1, Stale: 1}, r.Counts)
		s.heard(x, q, a.backend, a.front)
	})
}

// The hash has leftovers of former connections, so what comes from it is judged by the service, as in the hash,
// until the application has confirmed it.
func TestMigratedLeftoversAreNotBelieved(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		a := s.service()
		turned, kept, confirmed, sender := s.socket(), s.socket(), s.socket(), s.socket()
		for _, x := range []*socket{turned, kept, confirmed} {
			x.connect(a.front)
		}
		// The hash knows nothing of that.
		turned.connect(a.backend)
		q := s.queue(sender, a.front)
		s.migrates(engine)
		for _, x := range []*socket{turned, kept, confirmed} {
			same(s, a.front, x.peername(), "getpeername, as before")
			require.NotNil(s, x.conn())
			assert.True(s, x.conn().Migrated)
			assert.Zero(s, x.conn().Time, "unknown")
		}
		confirmed.connect(a.front)
		s.delete(a)
		for _, x := range []*socket{turned, kept} {
			same(s, a.backend, x.peername(), "getpeername once the service is gone")
		}
		same(s, a.front, confirmed.peername(), "getpeername of what was confirmed")
		s.heard(sender, q, a.backend, a.backend)
		s.publish(a)
		s.connected(kept, a)
	})
}

// A rollback, and a migration again, keep what a service that is gone for a moment has.
func TestAFlapDuringMigrationsLosesNobody(t *testing.T) {
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		for _, protocol := range either {
			holdIn(t, loader.ModeStorage, protocol, func(s *scene) {
				a := s.service()
				x := s.socket()
				x.connect(a.front)
				s.withoutBackend(a)
				s.rollsBack()
				s.migrates(engine)
				s.publish(a)
				s.connected(x, a)
			})
		}
	})
}
