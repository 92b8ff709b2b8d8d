// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/attached"
)

// step is one thing that a plan does.
type step interface {
	// String is its name, which tests know.
	fmt.Stringer
	// changes are what is said of it.
	changes() []Change
	// do does it, and returns how to take it back; nil: that cannot be done.
	do(*applier) (undo func() error, err error)
}

// tried is a step of which a dry run finds out whether it would succeed.
type tried interface{ try(*applier) error }

// applier carries out a plan. Its zero value with options is ready.
type applier struct {
	opts Options
	ctx  context.Context      // of apply
	dp   *Datapath            // the maps
	spec *ebpf.CollectionSpec // of the programs that are to be loaded
	ours map[string]*ebpf.Program
	held []io.Closer // until the call is over: a step, or taking it back, may need them
	undo []func() error
	// final tells that something was done that cannot be taken back.
	final bool
	// position is that of all switches.
	position *ebpf.Map
}

func nothing() error { return nil }

// apply carries out the steps in order.
func (a *applier) apply(ctx context.Context, steps []step) error {
	a.ctx = ctx
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.opts.step(s.String()); err != nil {
			return err
		}
		undo, err := s.do(a)
		if err != nil {
			return err
		}
		if undo == nil {
			a.final = true
		}
		a.undo = append(a.undo, undo)
		a.opts.Logger.Debug("done", "step", s)
		for _, c := range s.changes() {
			a.opts.changed(c)
		}
	}
	return a.opts.step("done")
}

// try finds out whether the steps would succeed, as far as that can be known.
func (a *applier) try(steps []step) error {
	for _, s := range steps {
		if t, ok := s.(tried); ok {
			if err := t.try(a); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish ends a call. If the call has failed, finish undoes all steps, in reverse order; nothing else does.
// It is to be deferred.
func (a *applier) finish(err *error) {
	switch {
	case *err == nil:
	case a.final:
		*err = fmt.Errorf("%w: %w", ErrPartlyDone, *err)
	default:
		errs := []error{*err}
		for _, undo := range slices.Backward(a.undo) {
			errs = append(errs, undo())
		}
		*err = errors.Join(errs...)
	}
	for _, c := range slices.Backward(a.held) {
		c.Close()
	}
}

func (a *applier) hold(c io.Closer) { a.held = append(a.held, c) }

// closer is a function that closes something.
type closer func()

func (f closer) Close() error {
	f()
	return nil
}

// makeDir creates a directory and its parents, for the owner only.
type makeDir struct{ path string }

func (s makeDir) String() string     { return "create directory " + s.path }
func (s makeDir) changes() []Change  { return []Change{{ActionCreate, s.path}} }
func (s makeDir) try(*applier) error { return checkWritable(s.path) }
func (s makeDir) do(*applier) (func() error, error) {
	made, err := mkdirAll(s.path)
	return func() error { return removeAll(made) }, err
}

// createMap creates a map and pins it; that of the mode is pinned later.
type createMap struct{ name, pin string }

func (s createMap) String() string    { return "create map " + s.name }
func (s createMap) changes() []Change { return []Change{{ActionCreate, s.pin}} }
func (s createMap) do(a *applier) (func() error, error) {
	if err := a.newMap(s.name, a.spec.Maps[s.name]); err != nil || s.name == mapConfig {
		return nothing, err
	}
	return pinMap{s.name}.do(a)
}

// try makes a small one, with which no program will run.
func (s createMap) try(a *applier) error {
	spec := a.spec.Maps[s.name]
	switch spec.Type {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		spec.MaxEntries = min(spec.MaxEntries, 64)
	}
	return a.newMap(s.name, spec)
}

func (a *applier) newMap(name string, spec *ebpf.MapSpec) error {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return describe(fmt.Errorf("creating map %s: %w", name, err))
	}
	a.dp.maps[name] = m
	return nil
}

// adoptMap pins a map again that programs use.
type adoptMap struct {
	name, pin string
	id        ebpf.MapID
}

func (s adoptMap) String() string    { return "pin map " + s.name + " again" }
func (s adoptMap) changes() []Change { return []Change{{ActionAdopt, s.pin}} }

func (s adoptMap) try(a *applier) error {
	m, err := openMapID(s.id)
	if err != nil || m == nil {
		return errors.Join(err, fmt.Errorf("map %d: %w", s.id, ErrStale))
	}
	a.dp.maps[s.name] = m
	if err := adapt(m, a.spec.Maps[s.name]); err != nil {
		return fmt.Errorf("map %d: %w", s.id, err)
	}
	return nil
}

func (s adoptMap) do(a *applier) (func() error, error) {
	if err := s.try(a); err != nil {
		return nil, err
	}
	return pinMap{s.name}.do(a)
}

// pinMap pins a map that was created.
type pinMap struct{ name string }

func (s pinMap) String() string    { return "pin map " + s.name }
func (s pinMap) changes() []Change { return nil }
func (s pinMap) do(a *applier) (func() error, error) {
	path := a.opts.pinPath(s.name)
	if err := a.dp.maps[s.name].Pin(path); err != nil {
		return nil, describe(fmt.Errorf("pinning %s: %w", path, err))
	}
	return func() error { return os.Remove(path) }, nil
}

// loadPrograms loads the programs.
type loadPrograms struct{}

func (loadPrograms) String() string    { return "load programs" }
func (loadPrograms) changes() []Change { return nil }
func (s loadPrograms) try(a *applier) error {
	_, err := s.do(a)
	return err
}

func (loadPrograms) do(a *applier) (func() error, error) {
	kept := a.opts.Programs
	if kept == nil {
		kept = new(Programs)
		a.hold(kept)
	}
	progs, err := kept.load(a.spec, a.dp.maps)
	if err != nil {
		return nil, describe(fmt.Errorf("loading programs: %w", err))
	}
	a.ours = progs.Programs
	return nothing, nil
}

// switchMode switches the mode, and returns when no hook works in another. With check it finds out once more
// whether that is safe.
type switchMode struct {
	to    Mode
	check bool
}

func (s switchMode) String() string    { return "switch to mode " + s.to.String() }
func (s switchMode) changes() []Change { return []Change{{ActionSwitch, s.to.String()}} }
func (s switchMode) do(a *applier) (func() error, error) {
	before, err := a.dp.config()
	if err != nil {
		return nil, err
	}
	if s.check {
		if err := a.dp.checkMode(a.ctx, Mode(before.Mode), s.to); err != nil {
			return nil, err
		}
	}
	if err := allowMaps(); err != nil {
		return nil, err
	}
	undo := func() error { return a.dp.putMode(Mode(before.Mode)) }
	if err := a.dp.putMode(s.to); err != nil {
		return nil, errors.Join(err, undo())
	}
	a.opts.Logger.Info("switched mode", "mode", s.to)
	return undo, nil
}

// setMark marks the beginning of our hooks.
type setMark struct{}

func (setMark) String() string    { return "set mark" }
func (setMark) changes() []Change { return nil }
func (setMark) do(a *applier) (func() error, error) {
	before, err := a.dp.config()
	if err != nil {
		return nil, err
	}
	now, err := tupleTime()
	if err != nil {
		return nil, err
	}
	put := func(mark uint32) error {
		return a.dp.changeConfig(func(cfg *sock.SockRevskConfigValue) { cfg.Mark = mark })
	}
	return func() error { return put(before.Mark) }, put(now)
}

// setFeatures pins the features, in one atomic step where others are pinned already.
type setFeatures struct {
	pin    string
	before *keptState // nil: nothing is kept
	to     keptState
}

func (setFeatures) String() string { return "keep the features" }

func (s setFeatures) changes() []Change {
	var all []Change
	before := DefaultFeatures()
	if s.before == nil {
		all = []Change{{ActionCreate, s.pin}}
	} else {
		before = s.before.Features
	}
	if changed := s.to.Differences(before); len(changed) > 0 {
		all = append(all, Change{ActionSet, strings.Join(changed, " ")})
	}
	return all
}

func (s setFeatures) do(a *applier) (func() error, error) {
	text, err := json.Marshal(s.to)
	if err != nil {
		return nil, err
	}
	value := make([]byte, featuresSize)
	copy(value, text)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: mapFeatures, Type: ebpf.Array, KeySize: 4, ValueSize: featuresSize, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: value}},
	})
	if err != nil {
		return nil, describe(fmt.Errorf("creating map %s: %w", mapFeatures, err))
	}
	defer m.Close()
	return replacePin(a, m, s.pin, openPinnedMap)
}

// saveProgram pins what another agent has on a hook.
type saveProgram struct {
	hook hook
	id   ebpf.ProgramID
}

func (s saveProgram) String() string    { return "keep " + s.hook.reference }
func (s saveProgram) changes() []Change { return nil }
func (s saveProgram) do(a *applier) (func() error, error) {
	prog, err := ebpf.NewProgramFromID(s.id)
	if err != nil {
		return nil, describe(fmt.Errorf("opening program %d: %w", s.id, err))
	}
	a.hold(prog)
	return replacePin(a, prog, a.opts.formerPath(s.hook), openPinnedProgram)
}

// pinLink pins another agent's link once more.
type pinLink struct {
	hook hook
	id   link.ID
}

func (s pinLink) String() string    { return "pin the link of " + s.hook.reference }
func (s pinLink) changes() []Change { return nil }
func (s pinLink) do(a *applier) (func() error, error) {
	l, err := link.NewFromID(s.id)
	if err != nil {
		return nil, describe(fmt.Errorf("opening link %d: %w", s.id, present(err)))
	}
	a.hold(l)
	path := a.opts.linkPath(s.hook)
	if err := l.Pin(path); err != nil {
		return nil, describe(fmt.Errorf("pinning %s: %w", path, err))
	}
	return func() error { return os.Remove(path) }, nil
}

// attach puts our program on a hook, in a new link.
type attach struct{ hook hook }

func (s attach) String() string    { return "attach " + s.hook.program }
func (s attach) changes() []Change { return []Change{{ActionAttach, s.hook.program}} }
func (s attach) do(a *applier) (func() error, error) {
	return a.attachLink(s.hook, a.ours[s.hook.program])
}

func (a *applier) attachLink(h hook, prog *ebpf.Program) (func() error, error) {
	cgroup, err := os.Open(a.opts.Cgroup)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	raw, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: prog, Attach: h.attach})
	if err != nil {
		err = fmt.Errorf("attaching %s to %s: %w", h.program, a.opts.Cgroup, err)
		// Perhaps because another program has been attached meanwhile.
		if above, _, lookErr := cgroupsAround(a.opts.Cgroup); lookErr == nil && errors.Is(err, unix.EPERM) {
			on, _ := h.programsOf(append([]string{a.opts.Cgroup}, above...))
			if why := h.blockedBy(a.opts.Cgroup, on); why != nil {
				return nil, fmt.Errorf("%w: %w", err, why)
			}
		}
		return nil, describe(err)
	}
	a.hold(raw)
	path := a.opts.linkPath(h)
	// The pin keeps the link when this process ends.
	if err := raw.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pinning %s: %w", path, err), raw.Detach())
	}
	// Detach it now: the removal of its last pin alone would detach it some time later.
	return func() error { return errors.Join(raw.Detach(), raw.Unpin()) }, nil
}

// exchange replaces a program by another one in one atomic step, if the former is still attached.
type exchange struct {
	hook   hook
	linked bool // in the link that is pinned; else attached without one
	old    ebpf.ProgramID
	ours   bool // our program is the new one; else the saved program is put back
	said   Change
}

func (s exchange) String() string {
	if s.ours {
		return "attach " + s.hook.program
	}
	return "hand back " + s.hook.reference
}

func (s exchange) changes() []Change { return []Change{s.said} }

func (s exchange) do(a *applier) (func() error, error) {
	// Held open until the call is over: the exchange drops the last reference to it.
	old, err := openReplaced(s.old)
	if err != nil {
		return nil, err
	}
	a.hold(old)
	next := a.ours[s.hook.program]
	if !s.ours {
		if next, err = openPinnedProgram(a.opts.formerPath(s.hook)); err != nil {
			return nil, err
		}
		a.hold(next)
	}
	return a.swap(s.hook, s.linked, old, next)
}

// openReplaced opens a program that is to be replaced.
func openReplaced(id ebpf.ProgramID) (*ebpf.Program, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrStale, err) // somebody has been faster
	}
	if err != nil {
		return nil, describe(fmt.Errorf("opening program %d, which is to be replaced: %w", id, err))
	}
	return p, nil
}

// swap replaces a program: in the link that is pinned, or else attached without one.
func (a *applier) swap(h hook, linked bool, old, next *ebpf.Program) (undo func() error, err error) {
	swap := func(old, next *ebpf.Program) error { return swapAttached(a.opts.Cgroup, h, old, next) }
	if linked {
		pinned, err := openPinnedLink(a.opts.linkPath(h))
		if err != nil {
			return nil, err
		}
		a.hold(pinned)
		swap = func(old, next *ebpf.Program) error { return swapLinked(pinned, old, next) }
	}
	err = swap(old, next)
	if _, statErr := os.Lstat(a.opts.formerPath(h)); errors.Is(err, ErrTakenBack) && errors.Is(statErr, os.ErrNotExist) {
		err = fmt.Errorf("%w: it holds another program than a moment ago", ErrStale) // there is no other agent
	}
	if err != nil {
		return nil, fmt.Errorf("replacing %s: %w", h.program, err)
	}
	return func() error { return swap(next, old) }, nil
}

// swapLinked returns an error wrapping [ErrTakenBack] if the link holds another program than the old one.
func swapLinked(l link.Link, old, next *ebpf.Program) error {
	err := l.(cgroupLink).UpdateArgs(link.RawLinkUpdateOptions{New: next, Old: old, Flags: unix.BPF_F_REPLACE})
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	// It says so of both: another program is there, and this process may not.
	there, lookErr := aboutLink(l)
	expected, programErr := aboutProgram(old)
	if lookErr == nil && programErr == nil && there.program != expected.id {
		return fmt.Errorf("%w: %w", ErrTakenBack, err)
	}
	return describe(err)
}

// swapAttached is swapLinked where there is no link.
func swapAttached(cgroup string, h hook, old, next *ebpf.Program) error {
	there, err := aboutProgram(old)
	if err != nil {
		return err
	}
	found, err := attached.To(cgroup, h.attach)
	if err != nil {
		return describe(err)
	}
	if !slices.Contains(found.IDs, there.id) {
		return fmt.Errorf("%w: %v is not attached any more", ErrTakenBack, there)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	args := link.RawAttachProgramOptions{
		Target:  int(dir.Fd()),
		Program: next,
		Attach:  h.attach,
		// The kernel requires the flags with which the others are attached.
		Flags: found.Flags,
	}
	if found.Flags&unix.BPF_F_ALLOW_MULTI != 0 {
		args.Anchor = link.ReplaceProgram(old)
	} else {
		// Here the kernel replaces whatever is there, and only its newer versions know what
		// revision that was (0: any).
		args.ExpectedRevision = found.Revision
	}
	err = link.RawAttachProgram(args)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return fmt.Errorf("%w: %w", ErrTakenBack, err)
	}
	return describe(err)
}

// detach takes our program off a hook at once: removing the last pin would do so some time later.
type detach struct {
	hook    hook    // the zero hook: nothing is said of it
	path    string  // of the link's pin
	id      link.ID // of a link that is not pinned; 0, and path empty: attached without a link
	program ebpf.ProgramID
	final   bool // it cannot be taken back
}

func (s detach) String() string { return strings.TrimSpace("detach " + s.hook.program) }

func (s detach) changes() []Change {
	if s.hook.program == "" {
		return nil
	}
	return []Change{{ActionDetach, s.hook.program}}
}

func (s detach) do(a *applier) (func() error, error) {
	prog, err := ebpf.NewProgramFromID(s.program)
	if err == nil {
		a.hold(prog)
	} // else it is dead, or cannot be attached again for want of CAP_SYS_ADMIN
	if s.path == "" && s.id == 0 {
		return s.detachAttached(a, prog)
	}
	open := func() (link.Link, error) { return openPinnedLink(s.path) }
	if s.id != 0 {
		open = func() (link.Link, error) { return link.NewFromID(s.id) }
	}
	l, err := open()
	if err != nil {
		return nil, err
	}
	a.hold(l)
	about, err := aboutLink(l)
	if err != nil || about.cgroup == 0 {
		return nothing, err
	}
	if s.program != 0 && about.program != s.program {
		return nil, fmt.Errorf("detaching %s: %w: its link holds another program than a moment ago", s.hook.program, ErrStale)
	}
	if err := l.(cgroupLink).Detach(); err != nil {
		return nil, fmt.Errorf("detaching %s: %w", s.hook.program, err)
	}
	if s.final || prog == nil {
		return nil, nil
	}
	return func() error {
		if err := os.Remove(s.path); err != nil {
			return err
		}
		_, err := a.attachLink(s.hook, prog)
		return err
	}, nil
}

func (s detach) detachAttached(a *applier, prog *ebpf.Program) (func() error, error) {
	if prog == nil {
		return nil, fmt.Errorf("detaching %s: program %d is gone", s.hook.program, s.program)
	}
	found, err := attached.To(a.opts.Cgroup, s.hook.attach)
	if err != nil {
		return nil, describe(err)
	}
	cgroup, err := os.Open(a.opts.Cgroup)
	if err != nil {
		return nil, err
	}
	a.hold(cgroup)
	err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: prog, Attach: s.hook.attach})
	if err != nil {
		return nil, fmt.Errorf("detaching %s: %w", s.hook.program, err)
	}
	return func() error {
		return link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: int(cgroup.Fd()), Program: prog, Attach: s.hook.attach, Flags: found.Flags,
		})
	}, nil
}

// rename moves a pin.
type rename struct{ from, to string }

func (s rename) String() string    { return "set aside " + s.from }
func (s rename) changes() []Change { return nil }
func (s rename) do(*applier) (func() error, error) {
	return func() error { return os.Rename(s.to, s.from) }, os.Rename(s.from, s.to)
}

// pinKind is what is pinned.
type pinKind int

const (
	aMap pinKind = iota
	aProgram
	aLink
)

// pinnedObject is what can be done with all of them.
type pinnedObject interface {
	io.Closer
	Pin(path string) error
	Unpin() error
}

// open opens what is pinned.
func (k pinKind) open(path string) (pinnedObject, error) {
	switch k {
	case aProgram:
		return openPinnedProgram(path)
	case aLink:
		return openPinnedLink(path)
	}
	return openPinnedMap(path)
}

// unpin removes a pin. What was pinned lives until the call is over, and is pinned again if it fails.
type unpin struct {
	path string
	kind pinKind
	said bool
}

func (s unpin) String() string { return "remove " + s.path }

func (s unpin) changes() []Change {
	if !s.said {
		return nil
	}
	return []Change{{ActionRemove, s.path}}
}

func (s unpin) do(a *applier) (func() error, error) {
	pinned, err := s.kind.open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	a.hold(pinned)
	if err := pinned.Unpin(); err != nil {
		return nil, err
	}
	return func() error { return pinned.Pin(s.path) }, nil
}

// removeDir removes a directory, if it is empty.
type removeDir struct{ path string }

func (s removeDir) String() string    { return "remove directory " + s.path }
func (s removeDir) changes() []Change { return []Change{{ActionRemove, s.path}} }
func (s removeDir) do(*applier) (func() error, error) {
	err := os.Remove(s.path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) { // somebody has put something there since
		return nothing, nil
	}
	return func() error { return os.Mkdir(s.path, 0o700) }, err
}

// leave says what is left alone.
type leave struct{ object string }

func (s leave) String() string                    { return "leave " + s.object }
func (s leave) changes() []Change                 { return []Change{{ActionLeave, s.object}} }
func (s leave) do(*applier) (func() error, error) { return nothing, nil }

// fillHash adds to the hash the tuples of sockets that it lacks. It can also check that none is missing
// afterwards.
type fillHash struct{ verify bool }

func (fillHash) String() string    { return "fill the hash" }
func (fillHash) changes() []Change { return nil }
func (s fillHash) do(a *applier) (func() error, error) {
	if err := a.dp.refill(a.ctx); err != nil || !s.verify {
		return nothing, err
	}
	lacking, err := a.dp.lackedByHash(a.ctx)
	if err == nil {
		err = lacking.check(true, false)
	}
	return nothing, err // nothing to undo: the added entries are right in every mode that uses the hash
}

// cloner is a map or a program.
type cloner[T any] interface {
	io.Closer
	Clone() (T, error)
	Pin(string) error
}

// replacePin is pinOver that can be taken back.
func replacePin[T cloner[T]](a *applier, object T, path string, open func(string) (T, error)) (undo func() error, err error) {
	undo = func() error { return os.Remove(path) }
	before, err := open(path)
	if err == nil {
		a.hold(before)
		undo = func() error { return pinOver(before, path) }
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return undo, pinOver(object, path)
}

// pinOver pins a map or program, in one atomic step where another is pinned already.
func pinOver[T cloner[T]](object T, path string) error {
	if err := os.Remove(path + next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	again, err := object.Clone() // Pin would move the pin of one that was opened by it
	if err != nil {
		return err
	}
	defer again.Close()
	if err := again.Pin(path + next); err != nil {
		return describe(fmt.Errorf("pinning %s: %w", path+next, err))
	}
	if err := os.Rename(path+next, path); err != nil {
		return errors.Join(err, os.Remove(path+next))
	}
	return nil
}

// next ends the names of pins that are about to take the place of others.
const next = "_next"
