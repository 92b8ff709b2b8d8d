// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Hooks are replaced one by one, and programs of two layouts cannot share what a socket holds. So where the
// layout changes, each hook first gets a switch: a program that goes on with the former program or with the
// new one, as one map says for all hooks. Then that map is changed, and after it the switches are replaced by
// the new programs.
//
// The programs of each switch are in a map that is pinned (the kernel empties it when nobody has it open or
// pinned), so a process can be killed at any point: the next call settles what the switches have come to.

// The positions of a switch.
const (
	formerPrograms = uint32(iota)
	newPrograms
)

func (o Options) switchesDir() string { return filepath.Join(o.PinsDir, "switches") }

// positionPath is where the map with the position of all switches is pinned. It is there as long as one of
// them is.
func (o Options) positionPath() string { return filepath.Join(o.switchesDir(), "position") }

func (o Options) switchPath(h hook) string { return filepath.Join(o.switchesDir(), h.program) }

// planHandover puts the new programs into the places of those that know the layout before only.
func (o *observation) planHandover(places []*place) (steps []step, rest []*place) {
	if !o.changesLayout() {
		return nil, places
	}
	steps = []step{makeSwitches{}}
	for _, p := range places {
		if p.remembers() && p.oursRuns() {
			steps = append(steps, putSwitch{hook: p.hook, linked: p.now.link != 0, old: p.now.id})
		} else {
			rest = append(rest, p)
		}
	}
	return append(steps, turnSwitches{}, settle{}), rest
}

// makeSwitches begins.
type makeSwitches struct{}

func (makeSwitches) String() string    { return "make switches" }
func (makeSwitches) changes() []Change { return nil }
func (makeSwitches) do(a *applier) (func() error, error) {
	if err := os.Mkdir(a.opts.switchesDir(), 0o700); err != nil {
		return nil, describe(err)
	}
	undo := func() error { return os.Remove(a.opts.switchesDir()) }
	position, err := ebpf.NewMap(&ebpf.MapSpec{Name: "revsk_position", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, errors.Join(describe(err), undo())
	}
	a.hold(position)
	a.position = position
	if err := position.Pin(a.opts.positionPath()); err != nil {
		return nil, errors.Join(describe(err), undo())
	}
	return func() error { return errors.Join(os.Remove(a.opts.positionPath()), undo()) }, nil
}

// putSwitch puts a switch, in the position of the former programs, into the place of one of them.
type putSwitch struct {
	hook   hook
	linked bool
	old    ebpf.ProgramID
}

func (s putSwitch) String() string    { return "attach switch of " + s.hook.program }
func (s putSwitch) changes() []Change { return []Change{{ActionReplace, s.hook.program}} }
func (s putSwitch) do(a *applier) (func() error, error) {
	old, err := openReplaced(s.old)
	if err != nil {
		return nil, err
	}
	a.hold(old)
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Name: "revsk_switch", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return nil, describe(err)
	}
	a.hold(programs)
	spec := a.spec.Programs[s.hook.program]
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: s.hook.program, Type: spec.Type, AttachType: spec.AttachType, License: spec.License,
		Instructions: asm.Instructions{
			asm.LoadMapPtr(asm.R2, a.dp.maps[mapConfig].FD()), // by which a datapath knows its programs
			asm.LoadMapValue(asm.R2, a.position.FD(), 0),
			asm.LoadMem(asm.R3, asm.R2, 0, asm.Word),
			asm.LoadMapPtr(asm.R2, programs.FD()),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 1), // never reached
			asm.Return(),
		},
	})
	if err != nil {
		return nil, describe(fmt.Errorf("loading the switch of %s: %w", s.hook.program, err))
	}
	a.hold(prog)
	for position, program := range map[uint32]*ebpf.Program{formerPrograms: old, newPrograms: a.ours[s.hook.program]} {
		if err := programs.Put(position, program); err != nil {
			return nil, describe(fmt.Errorf("filling the switch of %s: %w", s.hook.program, err))
		}
	}
	path := a.opts.switchPath(s.hook)
	if err := programs.Pin(path); err != nil {
		return nil, describe(fmt.Errorf("pinning %s: %w", path, err))
	}
	back, err := a.swap(s.hook, s.linked, old, prog)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return func() error { return errors.Join(back(), os.Remove(path)) }, nil
}

// turnSwitches makes all hooks use the new programs, and waits until the last former one has ended. From then
// on sockets hold what the former programs would not find.
type turnSwitches struct{}

func (turnSwitches) String() string    { return "turn switches" }
func (turnSwitches) changes() []Change { return nil }
func (turnSwitches) do(a *applier) (func() error, error) {
	if err := a.position.Put(uint32(0), newPrograms); err != nil {
		return nil, err
	}
	a.final = true
	return nil, waitForPrograms()
}

// settle puts the programs that switches are turned to into their places, and removes the switches.
type settle struct{}

func (settle) String() string    { return "settle switches" }
func (settle) changes() []Change { return nil }
func (settle) do(a *applier) (func() error, error) {
	return nothing, a.settle()
}

// settle does that for the switches that are there: of this call, or of one that was cut short.
func (a *applier) settle() error {
	positionPin, err := openPinnedMap(a.opts.positionPath())
	if errors.Is(err, os.ErrNotExist) {
		return removeIfThere(a.opts.switchesDir())
	}
	if err != nil {
		return err
	}
	defer positionPin.Close()
	var position uint32
	if err := positionPin.Lookup(uint32(0), &position); err != nil {
		return err
	}
	for _, h := range hooks {
		if err := a.settleHook(h, position); err != nil {
			return fmt.Errorf("settling the switch of %s: %w", h.program, err)
		}
	}
	if err := os.Remove(a.opts.positionPath()); err != nil {
		return err
	}
	return removeIfThere(a.opts.switchesDir())
}

func (a *applier) settleHook(h hook, position uint32) error {
	path := a.opts.switchPath(h)
	programs, err := openPinnedMap(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer programs.Close()
	id, err := mapID(programs)
	if err != nil {
		return err
	}
	on, err := h.programs(a.opts.Cgroup)
	if err != nil {
		return err
	}
	// It may not have been attached yet, or not any more.
	if i := slices.IndexFunc(on, func(p attachment) bool { return slices.Contains(p.maps, id) }); i >= 0 {
		var next uint32
		if err := programs.Lookup(position, &next); err != nil {
			return err
		}
		if err := a.swapIDs(h, on[i].id, ebpf.ProgramID(next)); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// swapIDs replaces a program wherever it is attached.
func (a *applier) swapIDs(h hook, old, next ebpf.ProgramID) error {
	there, err := ebpf.NewProgramFromID(old)
	if err != nil {
		return describe(err)
	}
	a.hold(there)
	comes, err := ebpf.NewProgramFromID(next)
	if err != nil {
		return describe(err)
	}
	a.hold(comes)
	l, err := readLink(a.opts, a.opts.linkPath(h), &h)
	if err != nil {
		return err
	}
	_, err = a.swap(h, l.live && l.program == old, there, comes)
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
