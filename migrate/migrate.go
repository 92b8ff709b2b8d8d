// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// The steps of a migration, in order.
const (
	stepLoad     = "load programs"
	stepDual     = "switch to mode dual"
	stepSnapshot = "read the hash"
	stepVisit    = "visit sockets"
	stepConfirm  = "confirm leaks"
	stepVerify   = "verify"
	stepStorage  = "switch to mode storage"
	stepMirror   = "switch to mode mirror"
	stepDelete   = "delete from the hash"
	stepUnpin    = "unpin the hash"
)

// dualRounds is how often the hash is read again for entries that are new. Under traffic there always are
// some: the hooks write those in mode dual, and the storage with them.
const dualRounds = 3

// verifyAttempts is how often a tuple is looked for that is not where it was put. An application may have
// ended it before, and brought it back before its entry is looked up; it will not time that well again
// and again.
const verifyAttempts = 10

// deleteAtOnce is how many entries of the hash are deleted between two looks whether the work is to end.
const deleteAtOnce = 8192

// maxReported is how many entries a report names.
const maxReported = 100

// Report is what a migration has done.
type Report struct {
	// Engine is the one that was used, never EngineAuto.
	Engine Engine
	// To is the mode in which it was to end, and Mode is the datapath's afterwards.
	To, Mode loader.Mode
	Counts
	// Deleted is how many entries were removed from the hash.
	Deleted int
	// Written is how many entries were put into the hash, of what sockets hold, for mode mirror; Missing how many
	// it has not taken.
	Written, Missing int
	// Rounds is how often the hash was read; Passes how often sockets were visited.
	Rounds, Passes int
	// Unresolved names entries with the result unknown, the first 100.
	Unresolved []Unresolved
	Steps      []Step
}

// Unresolved is an entry that could not be moved, or a tuple that could not be moved back.
type Unresolved struct {
	Key   lbmap.ReverseSKKey
	Value lbmap.ReverseSKValue
	Why   string
}

// migration is a migration under way.
type migration struct {
	worker
	opts    Options
	to      loader.Mode
	stale   *staleCache
	visitor visitor
	entries []*entry
	inOrder []*entry       // the same, in the order of the hash; of entries that were added later after the others
	index   *socketEntries // of entries, as far as they are in it
	rounds  int
	deleted int
	filled  RollbackReport // of the hash, for mode mirror
}

// Run moves the entries of the hash onto their sockets, verifies that, and ends in mode storage, where it
// deletes what has been moved and what was leaked; or in mode mirror ([Options.To]), for which it deletes what was leaked and
// puts into the hash what sockets hold. It can be interrupted at any point, and run again.
// The report is there even after an error, if anything was done.
//
// If some entries cannot be moved the datapath stays in mode dual, in which they are still read, and the
// error wraps [ErrUnresolved]. Other errors wrap [ErrNoHash], [ErrIncomplete], [ErrEngine], [ErrProcesses] or
// those of package loader.
func Run(ctx context.Context, opts Options) (*Report, error) {
	if err := errors.Join(checkTarget(opts.To), checkLoader(&opts.Loader)); err != nil {
		return nil, err
	}
	engine, err := opts.Engine.choose(false)
	if err != nil {
		return nil, err
	}
	// An interruption is reported with the mode, which is not known yet.
	svcs, _, err := openServices(context.WithoutCancel(ctx), opts.Loader.MapsDir)
	if err != nil {
		return nil, err
	}
	w, err := openWorker(ctx, opts.Loader, opts.Progress, opts.BeforeStep, opts.Logger)
	if err != nil {
		return nil, err
	}
	defer w.dp.close()
	m := &migration{
		worker: w,
		opts:   opts,
		to:     target(opts.To, w.dp.takenOver),
		stale:  svcs.cached(),
		visitor: visitor{
			engine:    engine,
			mayChange: opts.Engine != EngineIter,
			log:       w.log,
			cgroup:    opts.Loader.Cgroup,
			datapath:  w.dp.programMaps(),
		},
	}
	defer m.visitor.close()
	m.visitor.progress = func(done, total int) { m.report(stepVisit, done, total) }
	err = m.run(ctx)
	report, reportErr := m.finish()
	return report, errors.Join(err, reportErr)
}

func (m *migration) run(ctx context.Context) error {
	mode, err := m.dp.Mode()
	if err != nil {
		return err
	}
	if m.to == loader.ModeMirror {
		return m.toMirror(ctx, mode)
	}
	// In mode storage an earlier run has come to the last steps.
	if mode != loader.ModeStorage {
		if err := m.moveAll(ctx); err != nil {
			return err
		}
		// What comes into the hash until then is written by hooks, which write storage as well.
		if err := m.switchTo(stepStorage, loader.ModeStorage); err != nil {
			return err
		}
	}
	if err := m.do(stepSnapshot, func() error { return m.outdated(ctx) }); err != nil {
		return err
	}
	return m.cleanUp(ctx)
}

// moveAll moves everything, and leaves the datapath in mode dual.
func (m *migration) moveAll(ctx context.Context) error {
	// The kernel may refuse the programs: before anything is changed.
	if err := m.do(stepLoad, func() error { return m.visitor.load(visitRoom) }); err != nil {
		return err
	}
	if err := m.switchTo(stepDual, loader.ModeDual); err != nil {
		return err
	}
	if err := m.move(ctx); err != nil {
		return err
	}
	if err := m.reconsider(ctx); err != nil {
		return err
	}
	if err := m.do(stepConfirm, func() error { return m.confirm(ctx) }); err != nil {
		return err
	}
	if err := m.do(stepVerify, func() error { return m.verify(ctx) }); err != nil {
		return err
	}
	if c := countResults(m.entries); c.Unknown+c.NoRoom > 0 {
		return fmt.Errorf("%d entries: %w", c.Unknown+c.NoRoom, ErrUnresolved)
	}
	return nil
}

// switchTo switches the mode; the caller knows that nothing is forgotten by it.
func (m *migration) switchTo(step string, mode loader.Mode) error {
	return m.do(step, func() error { return m.dp.SetMode(mode, true) })
}

// move moves what is new in the hash, until there is nothing new.
func (m *migration) move(ctx context.Context) error {
	for range dualRounds {
		var fresh []*entry
		err := m.do(stepSnapshot, func() (err error) {
			fresh, err = m.snapshot()
			return err
		})
		if err != nil || len(fresh) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.do(stepVisit, func() error { return m.visitor.visit(ctx, fresh) }); err != nil {
			return err
		}
		m.entries = append(m.entries, fresh...)
	}
	return nil
}

// known are all entries by socket.
func (m *migration) known() *socketEntries {
	if m.index == nil || len(m.index.entries) < len(m.entries) {
		m.index = bySocket(m.entries)
	}
	return m.index
}

// snapshot returns the entries that have come into the hash since the last one. Those that a hook has
// ended already need no visit.
func (m *migration) snapshot() ([]*entry, error) {
	m.rounds++
	var fresh []*entry
	var room []entry
	next := 0 // the place of the entry that comes next if nothing has changed: the hash is read in the same order
	err := m.dp.hash.each(func(key hashKey, value hashValue) {
		if next < len(m.inOrder) && m.inOrder[next].key == key {
			next++
			return
		}
		if e := m.known().find(&key); e != nil {
			next = int(e.place) + 1
			return
		}
		if len(room) == 0 {
			room = make([]entry, entriesAtOnce)
		}
		e := &room[0]
		room = room[1:]
		*e = entry{key: key, value: value, stale: m.stale.stale(value), place: uint32(len(m.inOrder) + len(fresh))}
		fresh = append(fresh, e)
	})
	m.inOrder = append(m.inOrder, fresh...)
	return fresh, err
}

// entriesAtOnce is for how many entries memory is taken at once.
const entriesAtOnce = 512

// verify looks for what was moved by another way than it was moved.
func (m *migration) verify(ctx context.Context) error {
	open := make([]*entry, 0, len(m.entries))
	for _, e := range m.entries {
		if e.isMoved() {
			open = append(open, e)
		}
	}
	for range verifyAttempts {
		if len(open) == 0 {
			return nil
		}
		if err := m.markHeld(ctx, m.known()); err != nil {
			return err
		}
		var missing []*entry
		for _, e := range open {
			if e.held {
				continue
			}
			_, ok, err := m.dp.hash.lookup(&e.key)
			if err != nil {
				return err
			}
			if !ok {
				e.result = ResultEnded
				continue
			}
			missing = append(missing, e)
		}
		open = missing
	}
	for _, e := range open {
		e.result, e.why = ResultUnknown, "its socket does not hold it"
	}
	return nil
}

// markHeld finds out which of the entries are on their sockets.
func (m *migration) markHeld(ctx context.Context, x *socketEntries) error {
	for _, e := range x.entries {
		e.held = false
	}
	return m.dp.eachTuple(ctx, func(key hashKey, _ hashValue) error {
		if e := x.find(&key); e != nil {
			e.held = true
		}
		return nil
	})
}

// outdated takes stock of what is in the hash in mode storage. The hooks have not looked after it since
// the mode was switched, so what sockets hold is the truth.
func (m *migration) outdated(ctx context.Context) error {
	fresh, err := m.snapshot()
	if err != nil || len(fresh) == 0 {
		return err
	}
	if err := m.markHeld(ctx, bySocket(fresh)); err != nil {
		return err
	}
	if err := (&looker{engine: m.visitor.engine, mayChange: m.visitor.mayChange}).look(ctx, fresh); err != nil {
		return err
	}
	for _, e := range fresh {
		switch {
		case e.held:
			e.result = ResultPresent
		case e.result != ResultLeaked:
			e.result = ResultEnded // its socket lives, and does not hold it
		}
	}
	m.entries = append(m.entries, fresh...)
	return nil
}

// cleanUp deletes what nobody needs any more, in mode storage.
func (m *migration) cleanUp(ctx context.Context) error {
	err := m.do(stepDelete, func() error { return m.deleteEntries(ctx) })
	if err != nil || !m.opts.UnpinSource {
		return err
	}
	for name, source := range m.dp.hash.maps() {
		if key, err := source.NextKeyBytes(nil); err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		} else if key != nil {
			return fmt.Errorf("%s is not empty, and stays pinned: %w", name, ErrUnresolved)
		}
	}
	return m.do(stepUnpin, m.dp.UnpinLegacy)
}

func (m *migration) deleteEntries(ctx context.Context) error {
	var keys []hashKey
	for _, e := range m.entries {
		if e.isOver() && (e.result != ResultStale || !m.opts.KeepStale) || e.isMoved() && m.to == loader.ModeStorage {
			keys = append(keys, e.key)
		}
	}
	for len(keys) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.report(stepDelete, m.deleted, m.deleted+len(keys))
		n := min(deleteAtOnce, len(keys))
		if err := m.dp.hash.delete(keys[:n]); err != nil {
			return err
		}
		m.deleted += n
		keys = keys[n:]
	}
	m.report(stepDelete, m.deleted, m.deleted)
	return nil
}

// finish makes the report of what was done.
func (m *migration) finish() (*Report, error) {
	mode, err := m.dp.Mode()
	r := &Report{
		Engine:  m.visitor.engine,
		To:      m.to,
		Mode:    mode,
		Counts:  countResults(m.entries),
		Deleted: m.deleted,
		Written: m.filled.Written,
		Missing: m.filled.Missing,
		Rounds:  m.rounds,
		Passes:  m.visitor.passes,
		Steps:   m.steps,
	}
	r.Unresolved = m.filled.Unresolved
	for _, e := range m.entries {
		if e.isKept() && len(r.Unresolved) < maxReported {
			r.Unresolved = append(r.Unresolved, Unresolved{e.key.exported(), e.value.exported(), e.why})
		}
	}
	return r, err
}
