// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/cgroup2"
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
// [ErrNotSupported], [ErrForeignLink], [ErrForeignProgram], [ErrAgentRuns], [ErrNothingToTakeOver], [ErrTakenBack],
// [ErrExclusive], [ErrOverrides], [ErrOtherDatapath], [ErrUnsafeDir], [ErrMapsReplaced], [ErrInvalid], [ErrNotAPin], [ErrNoProc] or [ErrUnsafeMode].
func Load(ctx context.Context, opts Options) (*Datapath, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	return load(ctx, opts)
}

// PlanLoad says what [Load] would change. It fails as that would.
func PlanLoad(ctx context.Context, opts Options) (changes []Change, err error) {
	opts, err = opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	dp, err := load(ctx, opts.planning(&changes))
	if err != nil {
		return nil, err
	}
	return changes, dp.Close()
}

func load(ctx context.Context, opts Options) (_ *Datapath, err error) {
	if err := checkSurroundings(); err != nil {
		return nil, err
	}
	if err := checkCgroup(opts.Cgroup); err != nil {
		return nil, err
	}
	if usual, err := FindCgroup2(); err == nil && usual == opts.Cgroup && !cgroup2.IsRoot(usual) {
		opts.Logger.Warn("this cgroup is the root of a namespace: only sockets of processes in it are translated", "cgroup", opts.Cgroup)
	}
	for _, dir := range []string{opts.PinsDir, opts.MapsDir} {
		if err := checkBPFFS(dir); err != nil {
			return nil, err
		}
	}

	if err := allowMaps(); err != nil {
		return nil, err
	}

	undo := new(undoer)
	defer undo.finish(&err)

	if err := lockPins(ctx, opts, undo); err != nil {
		return nil, err
	}
	for _, dir := range []string{opts.MapsDir, opts.linksDir()} {
		if err := makeDir(opts, dir, undo); err != nil {
			return nil, err
		}
	}

	if err := opts.settle(); err != nil {
		return nil, err
	}
	seen, err := observe(opts)
	if err != nil {
		return nil, err
	}
	if seen.unsafe != nil {
		return nil, seen.unsafe
	}
	if err := seen.checkAlone(); err != nil {
		return nil, err
	}
	spec, err := datapathSpec(opts)
	if err != nil {
		return nil, err
	}
	if err := checkMissingPins(opts, spec); err != nil {
		return nil, err
	}
	fresh := !exists(opts.pinPath(mapConfig))
	opened, err := openMaps(opts, spec, true, undo)
	if err != nil {
		return nil, err
	}
	dp := &Datapath{opts: opts, maps: opened}
	undo.add(dp.Close)
	if err := dp.loadAndAttach(ctx, spec, fresh, undo); err != nil {
		return nil, err
	}
	opts.warnOfLocalPorts()
	return dp, nil
}

// loadAndAttach does what follows once the maps are there. The mode is set before the first hook is
// attached, and after the last one is replaced.
func (dp *Datapath) loadAndAttach(ctx context.Context, spec *ebpf.CollectionSpec, fresh bool, undo *undoer) error {
	seats, err := dp.findSeats(undo)
	if err != nil {
		return err
	}
	if err := dp.opts.step("load programs"); err != nil {
		return err
	}
	progs, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: dp.maps})
	if err != nil {
		return describe(fmt.Errorf("loading programs: %w", err))
	}
	undo.hold(closer(progs.Close))

	if err := dp.prepareTakeover(seats, fresh, undo); err != nil {
		return err
	}
	if err := dp.setMark(seats, fresh, undo); err != nil {
		return err
	}
	for _, s := range seats {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := attachHook(dp.opts, s, progs.Programs[s.program], undo); err != nil {
			return err
		}
	}
	if dp.opts.Mode != nil {
		if err := dp.opts.step("set mode"); err != nil {
			return err
		}
		if err := dp.restoreMode(undo); err != nil {
			return err
		}
		if err := dp.setMode(ctx, *dp.opts.Mode, dp.opts.Force); err != nil {
			return err
		}
	}
	if err := keepFeatures(dp.opts, undo); err != nil {
		return err
	}
	return dp.dropUnwanted(undo)
}

// dropUnwanted frees the hooks that only an earlier load wanted. They have nothing to do with what
// sockets remember, so that the mode does not matter to who gets them back.
func (dp *Datapath) dropUnwanted(undo *undoer) error {
	var seats []*seat
	back := make(map[string]bool)
	for _, h := range hooks {
		if h.isWanted(dp.opts.Features) {
			continue
		}
		s, err := findSeat(dp.opts, h)
		if err != nil {
			return err
		}
		undo.hold(s)
		seats = append(seats, s)
		if !s.taken() || !s.ours() {
			continue
		}
		if err := s.handBack(dp.opts, undo); err != nil {
			return err
		}
		back[h.program] = true
	}
	for _, s := range seats {
		if !back[s.program] {
			if err := s.drop(dp.opts, undo); err != nil {
				return err
			}
		}
	}
	// Last, since it is not undone.
	if err := cleanAside(dp.opts, false); err != nil {
		return err
	}
	for _, s := range seats {
		if back[s.program] {
			if err := dp.opts.unpinSeat(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop is detach of a hook that is not wanted any more, and registers how to undo that.
func (s *seat) drop(opts Options, undo *undoer) error {
	if err := opts.step("detach " + s.program); err != nil {
		return err
	}
	if s.link == nil || !s.ours() || opts.dryRun {
		return s.detach(opts)
	}
	prog, err := ebpf.NewProgramFromID(s.now.id)
	if err != nil {
		return describe(fmt.Errorf("opening the program of %s: %w", s.program, err))
	}
	undo.hold(prog)
	undo.add(func() error {
		now, err := findSeat(opts, s.hook)
		if err != nil {
			return err
		}
		defer now.Close()
		if now.live() {
			return nil
		}
		if err := opts.unpinSeat(now); err != nil {
			return err
		}
		attached := new(undoer)
		defer attached.close()
		opts.step = func(string) error { return nil }
		return attachHook(opts, now, prog, attached)
	})
	return s.detach(opts)
}

// setFirstMode decides the mode where nothing has run yet. A takeover begins in a mode that has the
// hash; the mode asked for follows when the last writer is replaced.
func (dp *Datapath) setFirstMode(takeover bool) error {
	mode := ModeStorage
	if dp.opts.Mode != nil {
		mode = *dp.opts.Mode
	} else if takeover {
		mode = ModeDual
	} else if err := dp.checkLegacyEmpty(); errors.Is(err, ErrUnsafeMode) {
		mode = ModeDual
	} else if err != nil {
		return err
	}
	if (mode == ModeStorage || mode == ModeMirror) && !dp.opts.Force {
		if err := dp.checkLegacyEmpty(); err != nil {
			return err
		}
	}
	if takeover && mode != ModeLegacy {
		mode = ModeDual
	}
	return dp.writeMode(mode)
}

// datapathSpec is what this kernel gets of the compiled programs.
func datapathSpec(opts Options) (*ebpf.CollectionSpec, error) {
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	opts.applySizes(spec)
	constants := opts.Features.constants()
	if constants["cfg_set_retval"], err = haveHelper(ebpf.CGroupSockAddr, asm.FnSetRetval); err != nil {
		return nil, err
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
	if !opts.Features.HealthCheck {
		delete(spec.Maps, sock.SockMapCiliumLb4Health)
		delete(spec.Maps, sock.SockMapCiliumLb6Health)
	}
	return spec, nil
}

func haveHelper(prog ebpf.ProgramType, helper asm.BuiltinFunc) (bool, error) {
	have, err := probe.Helper(prog, helper)
	return have, describe(err)
}

// lockPins makes the directory of the pins, if need be, and takes its lock until undo is closed.
func lockPins(ctx context.Context, opts Options, undo *undoer) error {
	for {
		made := new(undoer)
		if err := makeDir(opts, opts.PinsDir, made); err != nil {
			return err
		}
		unlock, err := opts.lockExisting(func() (func(), error) { return lock(ctx, opts.PinsDir, opts.Wait) })
		if err == nil {
			// Not before: without the lock the directory is another's.
			undo.steps = append(undo.steps, made.steps...)
			undo.hold(closer(unlock))
			return nil
		}
		gone := errors.Is(err, ErrNotLoaded) || errors.Is(err, os.ErrNotExist)
		if !gone || ctx.Err() != nil {
			return err
		}
		// Whoever had the lock has removed the directory: again.
	}
}

// makeDir creates a directory and its parents, for the owner only.
func makeDir(opts Options, dir string, undo *undoer) error {
	var made []string
	for d := dir; !exists(d); d = filepath.Dir(d) {
		made = append(made, d)
	}
	if opts.dryRun && len(made) > 0 {
		opts.changed(ActionCreate, dir)
		return checkWritable(dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("%w: %w", ErrPermission, err)
		}
		return err
	}
	for i := len(made) - 1; i >= 0; i-- {
		undo.add(func() error { return os.Remove(made[i]) })
	}
	if len(made) > 0 {
		opts.changed(ActionCreate, dir)
	}
	return nil
}
