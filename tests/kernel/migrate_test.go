// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
	"github.com/revsk/revsk/revnat"
)

func migrateOptions(engine migrate.Engine) migrate.Options {
	return migrate.Options{Loader: options(), Engine: engine}
}

func planOptions(engine migrate.Engine) migrate.PlanOptions {
	return migrate.PlanOptions{Loader: options(), Engine: engine}
}

func rollbackOptions() migrate.RollbackOptions { return migrate.RollbackOptions{Loader: options()} }

// withEngines plays with each engine that the kernel has.
func withEngines(t *testing.T, play func(t *testing.T, engine migrate.Engine)) {
	t.Helper()
	for _, engine := range []migrate.Engine{migrate.EngineIter, migrate.EnginePidfd} {
		t.Run(string(engine), func(t *testing.T) {
			_, err := migrate.Run(t.Context(), migrateOptions(engine))
			if errors.Is(err, migrate.ErrEngine) && engine == migrate.EngineIter {
				oldkernel.Skip(t, 6, 5, "iterators that lock the sockets")
			}
			require.NoError(t, err)
			play(t, engine)
		})
	}
}

// migrating plays in mode legacy, from which there is something to migrate, with each engine and sockets of every family.
func migrating(t *testing.T, protocols []int, play func(s *scene, engine migrate.Engine)) {
	t.Helper()
	withEngines(t, func(t *testing.T, engine migrate.Engine) {
		for _, protocol := range protocols {
			holdIn(t, legacy, protocol, func(s *scene) { play(s, engine) })
		}
	})
}

// migratingIPv4 does so with sockets of IPv4 only: for what takes long and does not depend on the family.
func migratingIPv4(t *testing.T, protocol int, play func(s *scene, engine migrate.Engine)) {
	t.Helper()
	withEngines(t, func(t *testing.T, engine migrate.Engine) { play(newScene(t, legacy, ipv4, protocol), engine) })
}

// migrates moves everything, which has to work, and checks that the counts add up.
func (s *scene) migrates(engine migrate.Engine) *migrate.Report {
	s.Helper()
	r, err := migrate.Run(s.Context(), migrateOptions(engine))
	require.NoError(s, err, "%+v", r)
	require.Equal(s, engine, r.Engine)
	require.Equal(s, loader.ModeStorage, r.Mode)
	s.addUp(r.Counts)
	require.Zero(s, s.hashEntries(), "entries in the legacy maps")
	return r
}

func (s *scene) rollsBack() *migrate.RollbackReport {
	s.Helper()
	r, err := migrate.Rollback(s.Context(), rollbackOptions())
	require.NoError(s, err, "%+v", r)
	require.Equal(s, loader.ModeLegacy, r.Mode)
	require.Zero(s, r.Missing)
	return r
}

func (s *scene) addUp(c migrate.Counts) {
	s.Helper()
	require.Equal(s, c.Entries, c.MovedConn+c.MovedPeers+c.Present+c.Stale+c.Leaked+c.Ended+c.Unknown+c.NoRoom, "%+v", c)
}

// leak writes entries of sockets that have never been.
func (s *scene) leak(n int) {
	s.Helper()
	for i := range n {
		svc := &service{front: netip.AddrPortFrom(s.family.services, 53), revNat: 1}
		s.putHash(1<<60+uint64(i), s.backendAt(i%100), svc)
	}
}

func TestMigrateSortsEntries(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		gone, ended := s.service(), s.service()
		x, y, z := s.socket(), s.socket(), s.socket()
		x.connect(s.service().front)
		s.asksService(y, gone)
		s.asksService(z, ended)
		s.leak(3)
		s.delete(gone)

		plan, err := migrate.MakePlan(s.Context(), planOptions(engine))
		require.NoError(s, err)
		s.addUp(plan.Counts)
		assert.Equal(s, migrate.Counts{Entries: 6, MovedConn: 1, MovedPeers: 1, Stale: 1, Leaked: 3}, plan.Counts)
		assert.Equal(s, 6, s.hashEntries(), "a plan changes nothing")
		mode, err := datapath.Mode()
		require.NoError(s, err)
		assert.Equal(s, legacy, mode)

		s.setMode(loader.ModeDual)
		s.asks(z, ended.backend, ended.backend, ended.backend)
		r := s.migrates(engine)
		assert.Equal(s, migrate.Counts{Entries: 5, MovedConn: 1, Stale: 1, Leaked: 3}, r.Counts)
		assert.Equal(s, 5, r.Deleted)
		s.asks(z, ended.backend, ended.backend, ended.backend)

		// Again: there is nothing to do.
		r = s.migrates(engine)
		assert.Zero(s, r.Counts)
	})
}

// A stream has no queue of former peers: what it was connected to before is nothing to it.
func TestMigrateLeavesFormerConnectionsOfStreams(t *testing.T) {
	migratingIPv4(t, unix.IPPROTO_TCP, func(s *scene, engine migrate.Engine) {
		x := s.socket()
		x.connect(s.service().front)
		x.disconnect()
		x.connect(s.plainServer())
		r := s.migrates(engine)
		assert.Equal(s, migrate.Counts{Entries: 1, Leaked: 1}, r.Counts)
		assert.Zero(s, x.tuples())
		s.talks(x, s.plainServer(), s.plainServer())
	})
}

// Nothing that hooks have stored makes room for what is migrated. That stays in the hash, and is moved when there is room.
func TestMigrateEvictsNothing(t *testing.T) {
	migratingIPv4(t, unix.IPPROTO_UDP, func(s *scene, engine migrate.Engine) {
		x := s.socket()
		var all []*service
		for range 3 + 2 {
			all = append(all, s.service())
		}
		s.setMode(loader.ModeDual)
		for _, svc := range all[:3] {
			s.asksService(x, svc) // in the slots
		}
		s.setMode(legacy)
		s.asksService(x, all[3]) // in the hash only
		q := s.queue(x, all[4].front)
		before := x.peers().Tuples()
		// There is room for the request to visit the socket by a descriptor, but not for a table; then not even for that.
		limits, want := []string{"800", "100"}, migrate.Counts{Entries: 5, Present: 3, NoRoom: 2}
		if engine == migrate.EnginePidfd {
			limits, want = []string{"100"}, migrate.Counts{Entries: 5, NoRoom: 5}
		}
		for _, limit := range limits {
			restore := setOptmem(s.T, limit)
			s.Cleanup(restore)
			r, err := migrate.Run(s.Context(), migrateOptions(engine))
			restore()
			require.ErrorIs(s, err, migrate.ErrUnresolved)
			assert.Equal(s, want, r.Counts, "net.core.optmem_max %s", limit)
			assert.Equal(s, loader.ModeDual, r.Mode)
			assert.Equal(s, before, x.peers().Tuples())
		}
		s.heard(x, q, all[4].backend, all[4].front)
		assert.Equal(s, migrate.Counts{Entries: 5, Present: 3, MovedPeers: 2}, s.migrates(engine).Counts)
		for _, svc := range all {
			s.asksService(x, svc)
		}
	})
}

func TestMigrateKeepsStaleEntriesIfTold(t *testing.T) {
	migrating(t, udp, func(s *scene, engine migrate.Engine) {
		s.mayLeak = true
		gone := s.service()
		x := s.socket()
		s.asksService(x, gone)
		s.delete(gone)
		opts := migrateOptions(engine)
		opts.KeepStale = true
		r, err := migrate.Run(s.Context(), opts)
		require.NoError(s, err)
		assert.Equal(s, migrate.Counts{Entries: 1, Stale: 1}, r.Counts)
		assert.Zero(s, r.Deleted)
		assert.Equal(s, 1, s.hashEntries())
		assert.Zero(s, x.tuples())
	})
}

// The snapshot has an entry, the hash has not any more: its socket needs it all the same.
func TestMigrateMovesWhatTheHashHasEvictedMeanwhile(t *testing.T) {
	migrating(t, either, func(s *scene, engine migrate.Engine) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		if s.datagram() {
			x.sendTo(s.service().front, "to another")
		}
		want := s.hashEntries()
		opts := migrateOptions(engine)
		opts.BeforeStep = func(step string) error {
			if step == "visit sockets" {
				clearMap(s.T, lbmap.ReverseSK4Map)
				clearMap(s.T, lbmap.ReverseSK6Map)
			}
			return nil
		}
		r, err := migrate.Run(s.Context(), opts)
		require.NoError(s, err)
		assert.Equal(s, want, r.MovedConn+r.MovedPeers)
		s.connected(x, a)
	})
}

func TestMigrateStopsWhereItIsToldTo(t *testing.T) {
	migrating(t, either, func(s *scene, engine migrate.Engine) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		y := s.socket()
		y.connect(s.service().front)
		if s.datagram() {
			for range 6 {
				y.sendTo(s.service().front, "to another")
			}
		}
		s.leak(2)
		entries := s.hashEntries()
		errCrash := errors.New("a crash")
		// Before each step of one run after the other, until one comes to its end.
		crash := func(run func(beforeStep func(string) error) error) (runs int) {
			for {
				runs++
				n := 0
				err := run(func(string) error {
					if n++; n == runs {
						return errCrash
					}
					return nil
				})
				s.connected(x, a)
				if err == nil {
					return runs
				}
				require.ErrorIs(s, err, errCrash)
			}
		}
		runs := crash(func(beforeStep func(string) error) error {
			opts := migrateOptions(engine)
			opts.BeforeStep = beforeStep
			r, err := migrate.Run(s.Context(), opts)
			s.addUp(r.Counts)
			return err
		})
		assert.Greater(s, runs, 4)
		assert.Zero(s, s.hashEntries())
		assert.Equal(s, entries-2, x.tuples()+y.tuples(), "tuples, each once")

		runs = crash(func(beforeStep func(string) error) error {
			opts := rollbackOptions()
			opts.BeforeStep = beforeStep
			_, err := migrate.Rollback(s.Context(), opts)
			return err
		})
		assert.Greater(s, runs, 4)
		assert.Equal(s, entries-2, s.hashEntries(), "entries, each once")
		s.migrates(engine)
	})
}

func TestRollbackThatDoesNotFitChangesNothing(t *testing.T) {
	s := newScene(t, loader.ModeStorage, ipv4, unix.IPPROTO_UDP)
	// As many as fill the slots of sockets, one more than there is room for. Backends need not answer.
	room := int(datapath.Map(lbmap.ReverseSK4Map).MaxEntries())
	var fronts []netip.AddrPort
	for i := range revnat.Slots {
		fronts = append(fronts, s.serviceTo(netip.AddrPortFrom(sandbox.Numbered(s.backends, i), 9)).front)
	}
	n := 0
	for n <= room {
		x := s.socket()
		for _, front := range fronts {
			x.sendTo(front, "x")
			n++
		}
	}
	r, err := migrate.Rollback(t.Context(), rollbackOptions())
	require.ErrorIs(t, err, migrate.ErrDoesNotFit)
	assert.Equal(t, n, r.Tuples)
	mode, err := datapath.Mode()
	require.NoError(t, err)
	assert.Equal(t, loader.ModeStorage, mode)
	assert.Zero(t, s.hashEntries())

	// With force what fits is there, and what does not is counted.
	opts := rollbackOptions()
	opts.Force = true
	r, err = migrate.Rollback(t.Context(), opts)
	require.NoError(t, err)
	assert.Equal(t, loader.ModeLegacy, r.Mode)
	assert.Equal(t, n-legacyCount(t), r.Missing)
	assert.Positive(t, r.Missing)
	s.mayLeak = true
}

func TestMigrateUnpinsTheSource(t *testing.T) {
	holdIn(t, legacy, tcp[0], func(s *scene) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		opts := migrateOptions(migrate.EngineAuto)
		opts.UnpinSource = true
		_, err := migrate.Run(s.Context(), opts)
		require.NoError(s, err)
		s.connected(x, a)
		full, err := opts.Loader.WithDefaults()
		require.NoError(s, err)
		for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
			path := full.MapsDir + "/" + name
			assert.NoFileExists(s, path)
			again, err := datapath.Map(name).Clone()
			require.NoError(s, err)
			require.NoError(s, again.Pin(path))
			require.NoError(s, again.Close())
		}
		_, err = migrate.Run(s.Context(), migrateOptions(migrate.EngineAuto))
		require.NoError(s, err)
	})
}

func TestMigrateRefusesWhatItWouldNotHonour(t *testing.T) {
	s := newScene(t, legacy, ipv4, unix.IPPROTO_UDP)
	a := s.service()
	x := s.socket()
	x.connect(a.front)
	for name, run := range map[string]func() error{
		"migrate by an unknown engine": func() error {
			_, err := migrate.Run(t.Context(), migrateOptions("bogus"))
			return err
		},
		"plan by an unknown engine": func() error {
			_, err := migrate.MakePlan(t.Context(), planOptions("bogus"))
			return err
		},
	} {
		require.ErrorIs(t, run(), migrate.ErrInvalid, name)
		mode, err := datapath.Mode()
		require.NoError(t, err)
		assert.Equal(t, legacy, mode, name)
		assert.Equal(t, 1, s.hashEntries(), name)
		s.connected(x, a)
	}
}

func TestPlanOfARollbackChangesNothing(t *testing.T) {
	s := newScene(t, loader.ModeStorage, ipv4, unix.IPPROTO_UDP)
	x := s.socket()
	x.connect(s.service().front)
	plan, err := migrate.PlanRollback(t.Context(), rollbackOptions())
	require.NoError(t, err)
	assert.Equal(t, 1, plan.Tuples)
	assert.Equal(t, loader.ModeStorage, plan.Mode)
	mode, err := datapath.Mode()
	require.NoError(t, err)
	assert.Equal(t, loader.ModeStorage, mode)
	assert.Zero(t, s.hashEntries())
}
