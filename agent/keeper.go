// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// keeper keeps the datapath right: it looks, does the most important thing, and looks again.
type keeper struct {
	a     *Agent
	print *fingerprinter

	seen     uint64 // the fingerprint of when all was well, or could not be mended
	moving   uint64 // the last fingerprint that was another one
	movedAt  time.Time
	nextLook time.Time
	backoff  time.Duration

	programs  loader.Programs
	loaded    bool        // by this process
	ownerLeft time.Time   // since when its links are gone; zero: they are there
	ownerTold bool        // that it has left
	ownerRuns time.Time   // since when its programs are back on our hooks; zero: they are not
	takeovers []time.Time // the last few

	told []loader.Problem

	nextRefill  time.Time
	notWritten  uint64 // the counter when the hash was last compared with the sockets
	nextMigrate time.Time
	unresolved  time.Duration // how long to wait after a migration that could not move everything
}

func newKeeper(a *Agent) *keeper { return &keeper{a: a} }

// stillFor is for how long at most the keeper waits for changes of others to end.
const stillFor = 2 * time.Second

func (k *keeper) run(ctx context.Context) {
	defer k.programs.Close()
	for {
		k.a.beat(loopDatapath)
		k.turn(ctx)
		pause := k.a.options().Poll
		if k.moving != k.seen {
			pause /= 5 // whether that was all
		}
		if sleep(ctx, k.a.untilTick(pause)) != nil {
			return
		}
	}
}

// turn works if something has changed and others have finished changing it, or if it is time to look.
func (k *keeper) turn(ctx context.Context) {
	now := time.Now()
	print, err := k.fingerprint()
	if err != nil {
		k.a.outcome(stepLook, err)
		return
	}
	opts := k.a.options()
	switch {
	case k.a.takeReload():
		k.loaded = false
	case print == k.seen && now.Before(k.nextLook):
		k.moving = print
		return
	case print == k.seen:
		k.moving = print
	case print != k.moving:
		if k.moving == k.seen {
			k.movedAt = now
		}
		k.moving = print
		k.a.stirred.Add(1)
		// At the start there is nothing to wait for.
		if k.seen != 0 && now.Sub(k.movedAt) < stillFor {
			return
		}
	}
	well := k.work(ctx)
	if ctx.Err() != nil {
		return
	}
	if well {
		k.backoff = 0
		k.nextLook = time.Now().Add(opts.LookEvery)
		return
	}
	k.backoff = min(max(2*k.backoff, time.Second), opts.LookEvery)
	k.nextLook = time.Now().Add(k.backoff)
	if left := k.ownerLeft.Add(opts.patience); !k.ownerLeft.IsZero() && !k.ownerTold && left.Before(k.nextLook) {
		k.nextLook = left
	}
}

func (k *keeper) fingerprint() (uint64, error) {
	if k.print == nil {
		var err error
		if k.print, err = newFingerprinter(); err != nil {
			return 0, err
		}
	}
	return k.print.take(k.a.options().Loader)
}

// takeReload tells whether the options ask for a load, once.
func (a *Agent) takeReload() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.reload = false }()
	return a.reload
}

// mostSteps bounds what is done at once: what is never done looks again later.
const mostSteps = 8

// work does one thing after the other until nothing is left to do. It returns whether all is well.
func (k *keeper) work(ctx context.Context) (well bool) {
	for range mostSteps {
		// Before looking: what changes afterwards is seen in the next turn.
		print, err := k.fingerprint()
		if err != nil {
			return k.a.outcome(stepLook, err)
		}
		if print != k.moving {
			k.movedAt = time.Now()
		}
		k.seen, k.moving = print, print
		more, ok := k.step(ctx)
		if !more {
			return ok
		}
		k.a.beat(loopDatapath)
	}
	return false
}

// step does the most important thing. It returns whether something was done, after which another look is due, and if nothing
// was, whether all is well.
func (k *keeper) step(ctx context.Context) (more, well bool) {
	opts := k.a.options()
	if k.a.inStandby() {
		runs, err := loader.AgentRuns(opts.Loader)
		if !k.a.outcome(stepLook, err) || !runs {
			return false, err == nil
		}
		k.a.update(func(v *view) { v.standby = false })
		k.loaded = false
	}
	status, err := k.look()
	if errors.Is(err, loader.ErrNotLoaded) || err == nil && !k.loaded {
		return k.load(ctx, status)
	}
	if !k.a.outcome(stepLook, err) {
		return false, false
	}
	if k.ownerHasLeft(opts, status) && k.letGo(ctx) {
		return false, true
	}
	for _, p := range status.Problems {
		switch p.Code {
		case loader.ProblemTakenBack, loader.ProblemBeside:
			if opts.Loader.Takeover && p.Mend != "" {
				return k.load(ctx, status)
			}
		case loader.ProblemNotAttached, loader.ProblemMisplaced, loader.ProblemHooksMissing, loader.ProblemLinkDetached, loader.ProblemLinkUnpinned,
			loader.ProblemCgroupRemoved, loader.ProblemMapMissing, loader.ProblemMapReplaced:
			return k.load(ctx, status)
		}
	}
	// When nothing else is to be mended: a hash that is full of live sockets stays so.
	if hasProblem(status.Problems, loader.ProblemHashFull) || status.Mode == loader.ModeDual || status.Mode == loader.ModeMirror && k.refillDue(status) {
		return k.migrate(ctx, status)
	}
	return false, len(status.Problems) == 0
}

func (a *Agent) inStandby() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view.standby
}

// look looks at everything, and tells of problems that are new and of those that are gone.
func (k *keeper) look() (loader.Status, error) {
	dp, err := loader.Open(k.a.options().Loader)
	if err != nil {
		k.a.setDatapath(nil)
		k.see(func(v *view) { v.loaded, v.hooks, v.problems = false, nil, nil })
		return loader.Status{}, err
	}
	status, err := dp.Health()
	k.a.setDatapath(dp)
	if err != nil {
		return status, err
	}
	k.tell(status.Problems)
	k.see(func(v *view) {
		v.loaded, v.mode, v.hooks, v.problems = true, status.Mode, status.Hooks, status.Problems
	})
	return status, nil
}

func (k *keeper) see(f func(*view)) {
	k.a.update(func(v *view) { v.looked = true; f(v) })
}

// hasProblem tells whether one of the problems is of this kind.
func hasProblem(all []loader.Problem, code string) bool {
	return slices.ContainsFunc(all, func(p loader.Problem) bool { return p.Code == code })
}

// tell tells of the problems that were not there when it was looked last, and of those that are gone.
func (k *keeper) tell(now []loader.Problem) {
	before := k.told
	if back := hasProblem(now, loader.ProblemTakenBack); back && !hasProblem(before, loader.ProblemTakenBack) {
		k.ownerRuns = k.movedAt
		k.a.stirred.Add(1)
		k.a.count(func(t *tally) { t.ownerRestarts++ })
		k.a.happen(OwnerReturned{now[slices.IndexFunc(now, func(p loader.Problem) bool { return p.Code == loader.ProblemTakenBack })]})
	}
	if hasProblem(now, loader.ProblemTakenBack) {
		// Others may be for its sake.
		now = slices.DeleteFunc(slices.Clone(now), func(p loader.Problem) bool {
			return p.Code != loader.ProblemTakenBack && !hasProblem(before, p.Code)
		})
	}
	for i, p := range now {
		if p.Code != loader.ProblemTakenBack && !hasProblem(before, p.Code) && !hasProblem(now[:i], p.Code) {
			k.a.happen(ProblemFound{p})
		}
	}
	for i, p := range before {
		if p.Code != loader.ProblemTakenBack && !hasProblem(now, p.Code) && !hasProblem(before[:i], p.Code) {
			k.a.happen(ProblemMended{p})
		}
	}
	k.told = now
}

// Where the owner restarts again and again, each load costs a second of a processor.
const (
	manyTakeovers = 5 // a minute
	restBetween   = 5 * time.Second
)

// load loads the datapath, and takes over if that is wanted.
func (k *keeper) load(ctx context.Context, before loader.Status) (more, well bool) {
	opts := k.a.options().Loader
	begin := time.Now()
	k.takeovers = slices.DeleteFunc(k.takeovers, func(t time.Time) bool { return begin.Sub(t) > time.Minute })
	if n := len(k.takeovers); n >= manyTakeovers && begin.Sub(k.takeovers[n-1]) < restBetween {
		return false, false
	}
	var done []loader.Change
	opts.OnChange = func(c loader.Change) { done = append(done, c) }
	opts.Logger, opts.Programs = k.a.warnings(), &k.programs
	dp, err := loader.Load(ctx, opts)
	if errors.Is(err, loader.ErrNothingToTakeOver) && before.Hooks != nil {
		// The owner has not come yet, and ours run already.
		opts.Takeover, opts.TakeoverLinks = false, ""
		dp, err = loader.Load(ctx, opts)
	}
	if !k.a.outcome(stepLoad, err) {
		return false, false
	}
	dp.Close()
	k.loaded = true
	took := count(done, loader.ActionTakeOver)
	if took == 0 {
		k.a.count(func(t *tally) { t.loads++ })
		k.a.happen(Loaded{done, time.Since(begin)})
		return true, true
	}
	k.takeovers = append(k.takeovers, begin)
	e := TookOver{Hooks: took, Duration: time.Since(begin)}
	if !k.ownerRuns.IsZero() {
		e.OwnerRan = time.Since(k.ownerRuns)
		k.ownerRuns = time.Time{}
	}
	k.a.count(func(t *tally) { t.takeovers++; t.ownerRan += e.OwnerRan })
	k.a.happen(e)
	return true, true
}

func count(changes []loader.Change, action string) (n int) {
	for _, c := range changes {
		if c.Action == action {
			n++
		}
	}
	return n
}

// ownerHasLeft tells whether something is to be done since the other agent's links are gone, and have been for so long that this is
// no restart.
func (k *keeper) ownerHasLeft(opts Options, s loader.Status) bool {
	if opts.WhenOwnerLeaves == OwnerStay || !hasProblem(s.Problems, loader.ProblemAgentOff) {
		k.ownerLeft, k.ownerTold = time.Time{}, false
		return false
	}
	if k.ownerLeft.IsZero() {
		k.ownerLeft = time.Now()
	}
	return time.Since(k.ownerLeft) >= opts.patience
}

// letGo does what was told to do when the owner has left. It returns whether that is done: what fails is tried again, and the
// datapath kept right meanwhile.
func (k *keeper) letGo(ctx context.Context) bool {
	policy := k.a.options().WhenOwnerLeaves
	if !k.ownerTold {
		k.ownerTold = true
		k.a.happen(OwnerLeft{policy})
	}
	if !k.a.outcome(stepGiveBack, k.a.giveBack(ctx, policy == OwnerUnload)) {
		return false
	}
	k.ownerLeft, k.ownerTold = time.Time{}, false
	k.a.setDatapath(nil)
	k.see(func(v *view) { v.standby, v.loaded, v.hooks, v.problems = true, false, nil, nil })
	return true
}

// giveBack gives the hooks back, or with unload, or where none were taken over, detaches them.
func (a *Agent) giveBack(ctx context.Context, unload bool) error {
	opts := a.options().Loader
	dp, err := loader.Open(opts)
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	hooks, err := dp.Hooks()
	dp.Close()
	if err != nil {
		return err
	}
	taken := slices.ContainsFunc(hooks, func(h loader.HookStatus) bool { return h.TakenOver != nil })
	return a.remove(ctx, opts, taken && !unload, unload)
}

// remove removes the datapath from its hooks.
func (a *Agent) remove(ctx context.Context, opts loader.Options, handBack, force bool) error {
	var done []loader.Change
	opts.OnChange = func(c loader.Change) { done = append(done, c) }
	opts.Logger = a.warnings()
	opts.Force = force
	var err error
	if handBack {
		err = a.handBack(ctx, opts)
	} else {
		err = loader.Unload(ctx, opts, false)
	}
	if err == nil {
		a.happen(GaveBack{handBack, done})
	}
	return err
}

// handBack moves what only sockets have into the hash before, where the mode has not kept it there.
func (a *Agent) handBack(ctx context.Context, opts loader.Options) error {
	err := loader.HandBack(ctx, opts)
	if !errors.Is(err, loader.ErrHashIncomplete) {
		return err
	}
	if _, err := migrate.Rollback(ctx, migrate.RollbackOptions{Loader: opts, Logger: opts.Logger}); err != nil {
		return err
	}
	return loader.HandBack(ctx, opts)
}
