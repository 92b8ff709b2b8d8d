// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/revsk/revsk/loader"
)

// The steps of a rollback that a migration does not have.
const (
	stepList     = "list sockets"
	stepOutdated = "delete outdated entries from the hash"
	stepWrite    = "write the hash"
	stepLegacy   = "switch to mode legacy"
)

// rollbackPasses is how often the hash is compared with what sockets hold, at most. Under traffic there
// is always something new: the hooks write that to the hash as well.
const rollbackPasses = 10

// RollbackReport is what a rollback has done.
type RollbackReport struct {
	// Mode is the datapath's afterwards.
	Mode loader.Mode
	// Tuples is how many there were to bring back when it began, at most one for each socket and
	// backend.
	Tuples int
	// Written is how many entries were added to the hash or corrected; Present how many were there
	// already; Removed how many were taken out again because their sockets were closed meanwhile.
	Written, Present, Removed int
	// Outdated is how many entries that nobody had looked after were deleted from the hash first.
	Outdated int
	// Missing is how many tuples are not in the hash afterwards, for want of room.
	Missing int
	// Passes is how often hash and sockets were compared.
	Passes     int
	Maps       []MapFill // with the numbers of tuples that are to go there
	Unresolved []Unresolved
	Steps      []Step
}

// rollback is a rollback under way.
type rollback struct {
	worker
	force  bool
	report RollbackReport
	// What this rollback has written and is not known to be outdated.
	written map[hashKey]written
	// lacksCookies says that there are sockets without a cookie.
	lacksCookies bool
	// Differences that the last pass has seen: if they are there still, no hook is just at it.
	differs map[hashKey]difference
}

// written is an entry that was written, and the last pass that has found its tuple on the socket.
type written struct {
	value hashValue
	pass  int
}

type difference struct{ hash, socket hashValue }

// Rollback brings what sockets hold back into the hash, verifies that, and switches to mode legacy. The
// sockets keep what they hold; nobody reads it in that mode. It can be interrupted at any point, and run
// again. The report is there even after an error, if anything was done.
//
// Returns an error wrapping [ErrDoesNotFit], with nothing changed, if the legacy maps have no room and
// RollbackOptions.Force is not set; or, with the datapath in mode dual, [ErrUnresolved]. Other errors wrap
// [ErrNoHash], [ErrIncomplete], [ErrProcesses] or those of packages loader and inspect.
func Rollback(ctx context.Context, opts RollbackOptions) (*RollbackReport, error) {
	return rollBack(ctx, opts, (*rollback).run)
}

// RollbackPlan is what a rollback would find.
type RollbackPlan struct {
	// Mode is the datapath's. In mode legacy there is nothing to do.
	Mode loader.Mode
	// Tuples is how many there are to bring back, at most one for each socket and backend.
	Tuples int
	Maps   []MapFill // with the numbers of tuples that are to go there
	Steps  []Step
}

// PlanRollback finds out whether the hash has room for what sockets hold, and changes nothing. Returns the
// errors that [Rollback] returns before it changes anything; the plan is there even after
// [ErrDoesNotFit].
func PlanRollback(ctx context.Context, opts RollbackOptions) (*RollbackPlan, error) {
	report, err := rollBack(ctx, opts, func(r *rollback, ctx context.Context) error {
		_, err := r.measure(ctx)
		return err
	})
	if report == nil {
		return nil, err
	}
	return &RollbackPlan{Mode: report.Mode, Tuples: report.Tuples, Maps: report.Maps, Steps: report.Steps}, err
}

func rollBack(ctx context.Context, opts RollbackOptions, do func(*rollback, context.Context) error) (*RollbackReport, error) {
	if err := checkLoader(&opts.Loader); err != nil {
		return nil, err
	}
	w, err := openWorker(ctx, opts.Loader, opts.Progress, opts.BeforeStep, opts.Logger)
	if err != nil {
		return nil, err
	}
	defer w.dp.close()
	r := &rollback{
		worker:  w,
		force:   opts.Force,
		written: make(map[hashKey]written),
	}
	err = do(r, ctx)
	mode, modeErr := w.dp.Mode()
	r.report.Mode, r.report.Steps = mode, r.steps
	return &r.report, errors.Join(err, modeErr)
}

// measure finds out in which mode the datapath is, and whether everything fits.
func (r *rollback) measure(ctx context.Context) (loader.Mode, error) {
	mode, err := r.dp.Mode()
	if err != nil || mode == loader.ModeLegacy {
		return mode, err
	}
	return mode, r.do(stepList, func() error { return r.listFits(ctx) })
}

// listFits makes sure that the hash has room for what sockets hold.
func (r *rollback) listFits(ctx context.Context) error {
	n4, n6 := 0, 0
	err := r.dp.eachForHash(ctx, func(key hashKey, _ hashValue) error {
		if key.is4() {
			n4++
		} else {
			n6++
		}
		r.lacksCookies = r.lacksCookies || key.Cookie == 0
		return nil
	})
	if err != nil {
		return err
	}
	r.report.Tuples = n4 + n6
	r.report.Maps = mapFills(r.dp.hash.maps(), n4, n6)
	for _, m := range r.report.Maps {
		if m.Entries > m.MaxEntries && !r.force {
			return fmt.Errorf("%s has room for %d entries, sockets hold %d: %w", m.Name, m.MaxEntries, m.Entries, ErrDoesNotFit)
		}
	}
	return nil
}

func (r *rollback) run(ctx context.Context) error {
	mode, err := r.measure(ctx)
	if err != nil || mode == loader.ModeLegacy {
		return err
	}
	if mode == loader.ModeStorage {
		// Before anybody reads it again.
		if err := r.do(stepOutdated, func() error { return r.deleteOutdated(ctx) }); err != nil {
			return err
		}
	}
	if err := r.switchTo(stepDual, loader.ModeDual); err != nil {
		return err
	}
	if err := r.do(stepWrite, func() error { return r.reconcile(ctx) }); err != nil {
		return err
	}
	return r.switchTo(stepLegacy, loader.ModeLegacy)
}

func (r *rollback) switchTo(step string, mode loader.Mode) error {
	return r.do(step, func() error { return r.dp.SetMode(mode, true) })
}

// deleteOutdated empties the hash, which the hooks have not looked after in mode storage.
func (r *rollback) deleteOutdated(ctx context.Context) error {
	var keys []hashKey
	err := r.dp.hash.each(func(key hashKey, _ hashValue) { keys = append(keys, key) })
	if err != nil {
		return err
	}
	for len(keys) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(deleteAtOnce, len(keys))
		if err := r.dp.hash.delete(keys[:n]); err != nil {
			return err
		}
		r.report.Outdated += n
		keys = keys[n:]
	}
	return nil
}

// reconcile makes the hash say what sockets hold. It does not hold the locks of the sockets, so a hook may
// change a tuple between its being read here and written; the next pass finds that. What a pass finds
// in order stays so, because in mode dual the hooks change both.
func (r *rollback) reconcile(ctx context.Context) error {
	for range rollbackPasses {
		changes, err := r.pass(ctx)
		if err != nil {
			return err
		}
		if changes == 0 {
			return nil
		}
	}
	return r.missing(ctx)
}

// comparison is how the hash differs from what sockets hold.
type comparison struct {
	tuples  int // that sockets hold
	agree   int // those of which the hash says the same
	missing map[hashKey]hashValue
	differs map[hashKey]difference
}

// newComparison is with a hash that says nothing yet of about n tuples.
func newComparison(n int) comparison {
	return comparison{missing: make(map[hashKey]hashValue, n), differs: make(map[hashKey]difference)}
}

// held adds what a socket holds.
func (c *comparison) held(key hashKey, value hashValue) {
	c.missing[key] = value
	c.tuples = len(c.missing)
}

// says compares an entry of the hash with what sockets hold, all of which was added before.
func (c *comparison) says(key hashKey, says hashValue) {
	value, ok := c.missing[key]
	if !ok {
		return
	}
	delete(c.missing, key)
	if value == says {
		c.agree++
	} else {
		c.differs[key] = difference{says, value}
	}
}

// compare lists what sockets hold, and reads the hash then: what hooks have written to the socket is in the hash by
// that time.
func (r *rollback) compare(ctx context.Context) (c comparison, err error) {
	if r.lacksCookies {
		if err := r.chooseCookies(ctx); err != nil {
			return c, err
		}
	}
	c = newComparison(r.report.Tuples)
	err = r.dp.eachForHash(ctx, func(key hashKey, value hashValue) error {
		c.held(key, value)
		if mine, ok := r.written[key]; ok {
			r.written[key] = written{mine.value, r.report.Passes}
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	err = r.dp.hash.each(c.says)
	return c, err
}

// pass makes the hash say what sockets hold. Returns how many entries it has found to be otherwise.
func (r *rollback) pass(ctx context.Context) (changes int, err error) {
	r.report.Passes++
	c, err := r.compare(ctx)
	if err != nil {
		return 0, err
	}
	if r.report.Passes == 1 {
		r.report.Present = c.agree
	}
	w := hashWriter{hash: r.dp.hash, done: func(n int) { r.worker.report(stepWrite, c.agree+n, c.tuples) }}
	for key, value := range c.missing {
		if key.Cookie == 0 {
			continue // nobody would find it by that
		}
		if err := r.write(ctx, &w, key, value); err != nil {
			return 0, err
		}
	}
	for key, d := range c.differs {
		// It may be a hook's doing, which writes storage first: it is overwritten only if it was there in the last
		// pass, too.
		if r.differs[key] != d {
			continue
		}
		if err := r.write(ctx, &w, key, d.socket); err != nil {
			return 0, err
		}
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	r.differs = c.differs
	removed, err := r.takeBack()
	return len(c.missing) + len(c.differs) + removed, err
}

func (r *rollback) write(ctx context.Context, w *hashWriter, key hashKey, value hashValue) error {
	if err := w.add(ctx, key, value); err != nil {
		return err
	}
	r.written[key] = written{value, r.report.Passes}
	r.report.Written++
	return nil
}

// hashWriter writes entries to the hash, many at once. If a hook has written one meanwhile that is overwritten, which the
// next pass finds; in mode dual nobody reads it before what is on the socket.
type hashWriter struct {
	hash    hash
	done    func(n int)
	keys    []hashKey
	values  []hashValue
	written int
}

// writtenAtOnce is how many entries are written at once.
const writtenAtOnce = 4096

func (w *hashWriter) add(ctx context.Context, key hashKey, value hashValue) error {
	w.keys, w.values = append(w.keys, key), append(w.values, value)
	if len(w.keys) < writtenAtOnce {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.flush()
}

func (w *hashWriter) flush() error {
	err := w.hash.write(w.keys, w.values)
	w.written += len(w.keys)
	w.keys, w.values = w.keys[:0], w.values[:0]
	w.done(w.written)
	return err
}

// takeBack removes what was written for tuples that are gone since, unless a hook has written there.
func (r *rollback) takeBack() (removed int, err error) {
	for key, mine := range r.written {
		if mine.pass == r.report.Passes {
			continue
		}
		delete(r.written, key)
		now, ok, err := r.dp.hash.lookup(&key)
		if err != nil {
			return removed, err
		}
		if !ok || now != mine.value {
			continue
		}
		if err := r.dp.hash.delete([]hashKey{key}); err != nil {
			return removed, err
		}
		removed++
		r.report.Removed++
	}
	return removed, nil
}

// missing finds out what the hash does not say after all. What differs once may be a hook's doing, which
// writes the one after the other.
func (r *rollback) missing(ctx context.Context) error {
	var before, now map[hashKey]difference
	for i := range 3 {
		c, err := r.compare(ctx)
		if err != nil {
			return err
		}
		now = c.differs
		for key, value := range c.missing {
			now[key] = difference{socket: value}
		}
		maps.DeleteFunc(now, func(key hashKey, d difference) bool { return i > 0 && before[key] != d })
		if len(now) == 0 {
			return nil
		}
		before = now
	}
	r.report.Missing = len(now)
	for key, d := range now {
		if len(r.report.Unresolved) == maxReported {
			break
		}
		why := "the hash has no room for it"
		if key.Cookie == 0 {
			why = "its socket has no cookie and could not be reached"
		}
		r.report.Unresolved = append(r.report.Unresolved, Unresolved{key.exported(), d.socket.exported(), why})
	}
	if !r.force {
		return fmt.Errorf("%d tuples: %w", r.report.Missing, ErrUnresolved)
	}
	return nil
}
