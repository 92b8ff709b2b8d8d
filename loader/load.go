// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/revsk/revsk/internal/probe"
)

// Load makes the datapath run as the options say, whatever ran before: it opens the pinned service,
// backend and legacy maps with the size and flags that they have and creates those that are missing,
// opens or creates its own, loads the programs, and attaches them, replacing a running version hook
// by hook. Calling it again is harmless. If it fails, everything is put back as it was.
//
// Close the Datapath when done with it; the hooks stay.
//
// Errors wrap [ErrLayout], [ErrLocked], [ErrNoBPFFS], [ErrNoCgroup2], [ErrPermission],
// [ErrNotSupported], [ErrForeignLink], [ErrForeignProgram], [ErrAgentRuns], [ErrNothingToTakeOver],
// [ErrTakenBack], [ErrExclusive], [ErrOverrides], [ErrOtherDatapath], [ErrFeaturesUnknown], [ErrUnsafeDir],
// [ErrMapsReplaced], [ErrInvalid], [ErrNotAPin], [ErrNoProc] or [ErrUnsafeMode].
func Load(ctx context.Context, opts Options) (_ *Datapath, err error) {
	opts, err = opts.checked()
	if err != nil {
		return nil, err
	}
	if isNamespaceRoot(opts.Cgroup) {
		opts.Logger.Warn("this cgroup is the root of a namespace: only sockets of processes in it are translated", "cgroup", opts.Cgroup)
	}
	if err := allowMaps(); err != nil {
		return nil, err
	}
	a := &applier{opts: opts}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	defer a.finish(&err)
	if err := a.lockPins(ctx); err != nil {
		return nil, err
	}
	if err := a.settle(); err != nil {
		return nil, err
	}
	steps, err := a.prepareLoad(ctx)
	if err == nil {
		err = a.apply(ctx, steps)
	}
	if err == nil {
		err = a.dp.checkCurrent(false) // another process may have made them anew since they were opened
	}
	if err != nil {
		return nil, err
	}
	a.opts.warnOfLocalPorts()
	return a.dp, nil
}

// PlanLoad says what [Load] would change. It fails as that would.
func PlanLoad(ctx context.Context, opts Options) (made []Change, err error) {
	opts, err = opts.checked()
	if err != nil {
		return nil, err
	}
	if err := allowMaps(); err != nil {
		return nil, err
	}
	a := &applier{opts: opts}
	defer a.close()
	defer a.finish(&err)
	if err := a.lockIfThere(ctx); err != nil {
		return nil, err
	}
	steps, err := a.prepareLoad(ctx)
	if err == nil {
		err = a.try(steps)
	}
	return changesOf(steps), err
}

// prepareLoad observes and plans, and opens the maps that are there.
func (a *applier) prepareLoad(ctx context.Context) ([]step, error) {
	o, err := observe(a.opts)
	if err != nil {
		return nil, err
	}
	if to := a.opts.Mode; to != nil && o.loaded && o.mode != *to && needsHeld(*to) && !a.opts.Force {
		if err := o.lookAtSockets(func(dp *Datapath) error { o.held, err = dp.held(ctx); return err }); err != nil {
			return nil, err
		}
	}
	if err := o.lookAtAgent(ctx); err != nil {
		return nil, err
	}
	steps, f, err := planLoad(o)
	if err != nil {
		return nil, err
	}
	a.opts.Features = &f
	if a.spec, err = datapathSpec(a.opts); err != nil {
		return nil, err
	}
	opened, err := openMaps(a.opts, a.spec.Maps)
	if err != nil {
		return nil, err
	}
	a.dp = &Datapath{opts: a.opts, maps: opened}
	return steps, a.prepareOlder(o)
}

// lookAtSockets asks the sockets, by the maps that are pinned.
func (o *observation) lookAtSockets(ask func(*Datapath) error) error {
	dp, err := Open(o.opts)
	if err != nil {
		return err
	}
	defer dp.Close()
	return ask(dp)
}

// close releases the maps.
func (a *applier) close() {
	if a.dp != nil {
		a.dp.Close()
	}
}

// Unload detaches the hooks. The maps stay pinned, so that sockets keep what they remember and a
// later Load goes on with it. Purge removes this datapath's own maps too: what live sockets remember
// is gone then, and their next answer shows a backend's address. The load balancer's maps stay in
// either case.
//
// Hooks that were taken over from another agent are for [HandBack]. With [Options.Force] they are
// detached, too: the agent's links are dead then, and its programs gone.
//
// If it fails, what it has detached is attached again. That cannot be done with the agent's links, and those
// to a cgroup that was removed: then the error wraps [ErrPartlyDone], and another call goes on.
//
// Returns an error wrapping [ErrNotLoaded], [ErrTakenOver], [ErrForeignLink] or [ErrLocked].
func Unload(ctx context.Context, opts Options, purge bool) error {
	return change(ctx, opts, unload(purge))
}

// PlanUnload says what [Unload] would change. It fails as that would.
func PlanUnload(ctx context.Context, opts Options, purge bool) ([]Change, error) {
	return planned(ctx, opts, unload(purge))
}

// HandBack puts the programs back in place that a Load with [Options.Takeover] has replaced, each
// in one atomic step, and removes this datapath with all its pins: the maps, too, since nobody keeps up
// to date any more what sockets remember. The load balancer's maps stay.
//
// The agent's programs know the hash only. So HandBack first adds the tuples of live sockets that the hash
// lacks, and switches to mode legacy. If the hash still lacks something, or says something else than the
// sockets after mode storage, in which nothing writes it, HandBack changes nothing and returns an error
// wrapping [ErrHashIncomplete], unless [Options.Force] is set. A hook on which the other agent has put a
// program of its own meanwhile stays as it is, and is reported as [ActionLeave].
//
// If it fails, everything is put back as it was, as far as with [Unload]. After the death of the
// process at any point, another call goes on. Returns an error wrapping [ErrNotLoaded],
// [ErrNotTakenOver], [ErrHashIncomplete], [ErrTakenBack], [ErrPartlyDone] or [ErrLocked].
func HandBack(ctx context.Context, opts Options) error { return change(ctx, opts, handBack) }

// PlanHandBack says what [HandBack] would change. It fails as that would.
func PlanHandBack(ctx context.Context, opts Options) ([]Change, error) {
	return planned(ctx, opts, handBack)
}

// planner observes and plans.
type planner func(ctx context.Context, a *applier) ([]step, error)

func unload(purge bool) planner {
	return func(_ context.Context, a *applier) ([]step, error) {
		o, err := observeWhatOneMay(a.opts)
		if err != nil {
			return nil, err
		}
		return planUnload(o, purge)
	}
}

func handBack(ctx context.Context, a *applier) ([]step, error) {
	o, err := observe(a.opts)
	if err != nil {
		return nil, err
	}
	if !o.loaded || !o.takenOver() {
		return planHandBack(o)
	}
	if a.dp, err = Open(a.opts); err != nil {
		if !a.opts.Force {
			return nil, err
		}
		o.loaded = false // as good as not
		return planHandBack(o)
	}
	a.hold(a.dp)
	if !a.opts.Force && o.mode != ModeLegacy {
		if o.lacking, err = a.dp.lackedByHash(ctx); err != nil {
			return nil, err
		}
	}
	return planHandBack(o)
}

// change plans and applies, with the lock of the pins.
func change(ctx context.Context, opts Options, plan planner) (err error) {
	a, err := newApplier(ctx, opts)
	if err != nil {
		return err
	}
	defer a.finish(&err)
	if err := a.settle(); err != nil {
		return err
	}
	steps, err := plan(ctx, a)
	if err != nil {
		return err
	}
	return a.apply(ctx, steps)
}

// planned is what a call would change.
func planned(ctx context.Context, opts Options, plan planner) (_ []Change, err error) {
	a, err := newApplier(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer a.finish(&err)
	steps, err := plan(ctx, a)
	return changesOf(steps), err
}

// newApplier has the lock of the pins, which must be there.
func newApplier(ctx context.Context, opts Options) (*applier, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkSurroundings(); err != nil {
		return nil, err
	}
	if !exists(opts.PinsDir) {
		return nil, fmt.Errorf("%s: %w", opts.PinsDir, ErrNotLoaded)
	}
	a := &applier{opts: opts}
	return a, a.lockIfThere(ctx)
}

// checked are the options with defaults, for a load, and what has to be so in any case.
func (o Options) checked() (Options, error) {
	o, err := o.WithDefaults()
	if err == nil {
		err = checkSurroundings()
	}
	if err == nil {
		err = checkCgroup(o.Cgroup)
	}
	for _, dir := range []string{o.PinsDir, o.MapsDir} {
		if err == nil {
			err = checkBPFFS(dir)
		}
	}
	return o, err
}

// datapathSpec is what this kernel gets of the compiled programs.
func datapathSpec(opts Options) (*ebpf.CollectionSpec, error) {
	spec, err := opts.compiled()
	if err != nil {
		return nil, err
	}
	if n := opts.LegacyMaxEntries; n != 0 {
		spec.Maps[mapReverse4].MaxEntries, spec.Maps[mapReverse6].MaxEntries = n, n
	}
	constants := opts.Features.constants()
	if constants["cfg_set_retval"], err = probe.Helper(ebpf.CGroupSockAddr, asm.FnSetRetval); err != nil {
		return nil, describe(err)
	}
	if constants["cfg_mptcp"], err = probe.MPTCP(); err != nil {
		return nil, describe(err)
	}
	precise, err := probe.PreciseVerifier()
	if err != nil {
		return nil, describe(err)
	}
	constants["cfg_imprecise_verifier"] = !precise
	constants["cfg_table_classes"], constants["cfg_table_maps"] = tableLimits(opts.Logger)
	if err := setConstants(spec, constants); err != nil {
		return nil, err
	}
	for _, h := range hooks {
		if !h.isWanted(opts.Features) {
			delete(spec.Programs, h.program)
		}
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !needsMap(name, opts.Features) })
	return spec, nil
}

// lockPins makes the directory of the pins, if need be, and takes its lock until the call is over.
func (a *applier) lockPins(ctx context.Context) error {
	for {
		made, err := mkdirAll(a.opts.PinsDir)
		if err != nil {
			return err
		}
		err = a.lockIfThere(ctx)
		if err == nil {
			if len(made) > 0 {
				a.undo = append(a.undo, func() error { return removeAll(made) })
				a.opts.changed(Change{ActionCreate, a.opts.PinsDir})
			}
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, ErrLocked) { // another process has it
			return err
		}
		if !isGone(err) {
			_ = removeAll(made) // unless there is something in it by now
			return err
		}
		// Whoever had the lock has removed the directory: again.
	}
}

// lockIfThere takes the lock until the call is over, if there is anything to lock.
func (a *applier) lockIfThere(ctx context.Context) error {
	if !exists(a.opts.PinsDir) {
		return nil
	}
	unlock, err := lock(ctx, a.opts.PinsDir, a.opts.Wait)
	if err == nil {
		a.hold(closer(unlock))
	}
	return err
}
