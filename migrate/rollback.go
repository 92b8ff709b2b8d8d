// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/inspect"
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
	dp     *datapath
	report RollbackReport
	// What this rollback has written and is not known to be outdated.
	written map[hashKey]hashValue
	// Differences that the last pass has seen: if they are there still, no hook is just at it.
	differs map[hashKey]difference
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
	w := newWorker(opts.Progress, opts.BeforeStep, opts.Logger)
	dp, err := openDatapath(ctx, opts.Loader, w.log)
	if err != nil {
		return nil, err
	}
	defer dp.close()
	r := &rollback{
		worker:  w,
		force:   opts.Force,
		dp:      dp,
		written: make(map[hashKey]hashValue),
	}
	err = do(r, ctx)
	mode, modeErr := dp.Mode()
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
	list, err := r.dp.sockets(ctx, false)
	if err != nil {
		return err
	}
	return r.checkFit(list)
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

// checkFit compares what sockets hold with the sizes of the maps.
func (r *rollback) checkFit(list []inspect.Socket) error {
	all := tuples(list)
	r.report.Tuples = len(all)
	n4 := 0
	for key := range all {
		if key.is4() {
			n4++
		}
	}
	r.report.Maps = mapFills(r.dp.hash.maps(), n4, len(all)-n4)
	for _, m := range r.report.Maps {
		if m.Entries > m.MaxEntries && !r.force {
			return fmt.Errorf("%s has room for %d entries, sockets hold %d: %w", m.Name, m.MaxEntries, m.Entries, ErrDoesNotFit)
		}
	}
	return nil
}

// deleteOutdated empties the hash, which the hooks have not looked after in mode storage.
func (r *rollback) deleteOutdated(ctx context.Context) error {
	keys, _, err := r.dp.hash.read()
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

// look lists what sockets hold, and then reads what the hash says.
func (r *rollback) look(ctx context.Context) (held, says map[hashKey]hashValue, err error) {
	list, err := r.dp.sockets(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	if list, err = r.withCookies(ctx, list); err != nil {
		return nil, nil, err
	}
	keys, values, err := r.dp.hash.read()
	if err != nil {
		return nil, nil, err
	}
	says = make(map[hashKey]hashValue, len(keys))
	for i := range keys {
		says[keys[i]] = values[i]
	}
	return tuples(list), says, nil
}

// pass makes the hash say what sockets hold. Returns how many entries it has found to be otherwise.
func (r *rollback) pass(ctx context.Context) (changes int, err error) {
	r.report.Passes++
	held, says, err := r.look(ctx)
	if err != nil {
		return 0, err
	}
	first := r.report.Passes == 1
	differs := make(map[hashKey]difference)
	done := 0
	for key, value := range held {
		if done%ctxInterval == 0 {
			if err := ctx.Err(); err != nil {
				return changes, err
			}
			r.worker.report(stepWrite, done, len(held))
		}
		done++
		now, ok := says[key]
		if ok && now == value {
			if first {
				r.report.Present++
			}
			continue
		}
		changes++
		if err := r.bring(key, value, now, ok, differs); err != nil {
			return changes, fmt.Errorf("writing an entry of the hash: %w", err)
		}
	}
	r.worker.report(stepWrite, len(held), len(held))
	r.differs = differs
	removed, err := r.takeBack(held)
	return changes + removed, err
}

// bring makes the hash say the value. That there is another one may be a hook's doing, which writes
// storage first: it is overwritten only if it was there in the last pass, too.
func (r *rollback) bring(key hashKey, value, now hashValue, ok bool, differs map[hashKey]difference) error {
	if key.Cookie == 0 {
		return nil // nobody would find it by that
	}
	flags := ebpf.UpdateNoExist
	if ok {
		d := difference{now, value}
		if r.differs[key] != d {
			differs[key] = d
			return nil
		}
		flags = ebpf.UpdateAny
	}
	err := r.dp.hash.update(&key, &value, flags)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil // a hook was faster
	}
	if err != nil {
		return err
	}
	r.written[key] = value
	r.report.Written++
	return nil
}

// takeBack removes what was written for tuples that are gone since, unless a hook has written there.
func (r *rollback) takeBack(held map[hashKey]hashValue) (removed int, err error) {
	for key, value := range r.written {
		if _, ok := held[key]; ok {
			continue
		}
		delete(r.written, key)
		now, ok, err := r.dp.hash.lookup(&key)
		if err != nil {
			return removed, err
		}
		if !ok || now != value {
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
		var err error
		if now, err = r.compare(ctx); err != nil {
			return err
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

// compare returns what sockets hold and the hash does not say.
func (r *rollback) compare(ctx context.Context) (map[hashKey]difference, error) {
	held, says, err := r.look(ctx)
	if err != nil {
		return nil, err
	}
	differs := make(map[hashKey]difference)
	for key, value := range held {
		if now, ok := says[key]; !ok || now != value {
			differs[key] = difference{now, value}
		}
	}
	return differs, nil
}
