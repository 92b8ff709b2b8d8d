// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/inspect"
)

// Datapath gives access to the maps of a datapath. It does not keep it running: that do the pins. The
// methods of a nil or closed Datapath return [ErrClosed].
type Datapath struct {
	opts Options
	maps map[string]*ebpf.Map // nil: closed
}

func (dp *Datapath) checkOpen() error {
	if dp == nil || dp.maps == nil {
		return ErrClosed
	}
	return nil
}

// Open opens the datapath behind the pins and changes nothing. Maps of the load balancer that do not
// exist are left out. Returns an error wrapping [ErrNotLoaded], [ErrLoading], [ErrLayout] or [ErrPermission].
func Open(opts Options) (*Datapath, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkSurroundings(); err != nil {
		return nil, err
	}
	compiled, err := opts.compiledMaps()
	if err != nil {
		return nil, err
	}
	specs := make(map[string]*ebpf.MapSpec, len(compiled))
	for name, spec := range compiled {
		specs[name] = spec.Copy()
	}
	opened, err := openMaps(opts, specs)
	if err != nil {
		return nil, err
	}
	dp := &Datapath{opts: opts, maps: opened}
	for _, name := range mapNames(specs) {
		if ownMap(name) && !isOlder(name, specs) && opened[name] == nil {
			dp.Close()
			return openRest(opts, name, slices.ContainsFunc(slices.Collect(maps.Keys(opened)), ownMap))
		}
	}
	state, err := readKept(opts)
	if err != nil {
		dp.Close()
		return nil, err
	}
	f := DefaultFeatures()
	if state != nil {
		f = state.Features
	}
	dp.opts.Features = &f
	return dp, nil
}

// openRest says why a map is missing, of which there may be others: or opens the datapath, if it is there now.
func openRest(opts Options, missing string, others bool) (*Datapath, error) {
	changing, err := isLockedByOthers(opts.PinsDir)
	switch {
	case err != nil:
		return nil, err
	case changing:
		return nil, fmt.Errorf("%s: %w", opts.PinsDir, ErrLoading)
	case exists(opts.pinPath(missing)):
		return Open(opts)
	case others:
		return nil, fmt.Errorf("%s: %w: a load or an unload has ended half way", opts.PinsDir, ErrNotLoaded)
	}
	return nil, fmt.Errorf("%s: %w", opts.PinsDir, ErrNotLoaded)
}

// Close releases the file descriptors. The hooks stay attached.
func (dp *Datapath) Close() error {
	if err := dp.checkOpen(); err != nil {
		return err
	}
	closeMaps(dp.maps)
	dp.maps = nil
	return nil
}

// Map returns one of the maps by its name in C, revsk_conn for example; nil if it does not exist.
// It belongs to the Datapath and must not be closed.
func (dp *Datapath) Map(name string) *ebpf.Map {
	if dp.checkOpen() != nil {
		return nil
	}
	return dp.maps[name]
}

// InspectMaps returns the maps with which package inspect lists and ends the sockets of this datapath. They
// belong to the Datapath and must not be closed; those of a nil or closed one are missing.
func (dp *Datapath) InspectMaps() inspect.Maps { return inspect.MapsOf(dp.Map) }

// Mode returns the current mode.
func (dp *Datapath) Mode() (Mode, error) {
	if err := dp.checkOpen(); err != nil {
		return 0, err
	}
	cfg, err := dp.config()
	return Mode(cfg.Mode), err
}

// SetMode switches the mode and returns when no hook works in the old one any more. Without force it
// refuses, with an error wrapping [ErrUnsafeMode], to stop reading a state that sockets rely on, or to
// read again a hash that nobody has kept up to date: migrating or rolling back moves it first.
//
// Other errors wrap [ErrInvalid], [ErrLocked], [ErrFrozen], [ErrStale] or [ErrClosed].
func (dp *Datapath) SetMode(ctx context.Context, mode Mode, force bool) error {
	locked, err := dp.Lock(ctx)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	return locked.SetMode(mode, force)
}

// PlanMode says what [Datapath.SetMode] would change. It fails as that would.
func (dp *Datapath) PlanMode(ctx context.Context, mode Mode, force bool) ([]Change, error) {
	if err := dp.checkOpen(); err != nil {
		return nil, err
	}
	steps, err := dp.planMode(ctx, mode, force)
	return changesOf(steps), err
}

func (dp *Datapath) planMode(ctx context.Context, mode Mode, force bool) ([]step, error) {
	o, err := dp.observeMode(ctx, mode, !force)
	if err != nil {
		return nil, err
	}
	return o.planMode(o.mode, mode, force)
}

func (dp *Datapath) setMode(ctx context.Context, mode Mode, force bool) (err error) {
	steps, err := dp.planMode(ctx, mode, force)
	if err != nil {
		return err
	}
	a := &applier{opts: dp.opts, dp: dp}
	defer a.finish(&err)
	return a.apply(ctx, steps)
}

// observeMode observes what it depends on if a mode may be switched to; of sockets only if it is asked.
func (dp *Datapath) observeMode(ctx context.Context, to Mode, sockets bool) (*observation, error) {
	if err := to.check(); err != nil {
		return nil, err
	}
	o := &observation{opts: dp.opts}
	var err error
	if o.mode, err = dp.Mode(); err != nil {
		return nil, err
	}
	for _, name := range []string{mapReverse4, mapReverse6} {
		s := mapState{name: name}
		if m := dp.maps[name]; m != nil {
			if s.has, err = hasEntries(m); err != nil {
				return nil, err
			}
		}
		o.maps = append(o.maps, s)
	}
	if sockets && needsHeld(to) {
		o.held, err = dp.held(ctx)
	}
	return o, err
}

// checkMode returns an error wrapping [ErrUnsafeMode] if live sockets would forget something in a mode.
func (dp *Datapath) checkMode(ctx context.Context, from, to Mode) error {
	o, err := dp.observeMode(ctx, to, true)
	if err != nil {
		return err
	}
	return o.checkMode(from, to)
}

// putMode switches the mode and waits until no hook works in another.
func (dp *Datapath) putMode(mode Mode) error {
	err := dp.changeConfig(func(cfg *sock.SockRevskConfigValue) { cfg.Mode = uint32(mode) })
	if err != nil {
		return fmt.Errorf("switching to mode %v: %w", mode, err)
	}
	if err := waitForPrograms(); err != nil {
		return fmt.Errorf("waiting for running hooks: %w", err)
	}
	// Since when it is in this mode. A first load has not pinned it yet.
	if err := os.Chtimes(dp.opts.pinPath(mapConfig), time.Time{}, time.Now()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// waitForPrograms returns when every program that runs now has finished: a hook may have read the old
// mode. The kernel waits for an RCU grace period before it returns from the update of a map of maps.
func waitForPrograms() error {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	element, err := ebpf.NewMap(inner)
	if err != nil {
		return err
	}
	defer element.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return err
	}
	defer outer.Close()
	return outer.Put(uint32(0), element)
}
