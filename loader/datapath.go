// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
)

// Datapath gives access to the maps of a datapath. It does not keep it running: that do the pins. The
// methods of a nil or closed Datapath return [ErrClosed].
type Datapath struct {
	opts Options
	maps map[string]*ebpf.Map // nil: closed
	// dryMode is the mode that a dry run has come to.
	dryMode *Mode
	// dryFilled are the entries that a dry run would have put into the hash.
	dryFilled map[lbmap.ReverseSKKey]bool
}

func (dp *Datapath) checkOpen() error {
	if dp == nil || dp.maps == nil {
		return ErrClosed
	}
	return nil
}

// Open opens the datapath behind the pins and changes nothing. Maps of the load balancer that do not
// exist are left out. Returns an error wrapping [ErrNotLoaded], [ErrLayout] or [ErrPermission].
func Open(opts Options) (*Datapath, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkSurroundings(); err != nil {
		return nil, err
	}
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	opened, err := openMaps(opts, spec, false, nil)
	if err != nil {
		return nil, err
	}
	if err := opts.settle(); err != nil {
		closeMaps(opened)
		return nil, err
	}
	return &Datapath{opts: opts, maps: opened}, nil
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

// InspectMaps returns the maps with which package inspect lists and ends the sockets of this datapath. They belong to the
// Datapath and must not be closed; those of a nil or closed one are missing.
func (dp *Datapath) InspectMaps() inspect.Maps { return inspect.MapsOf(dp.Map) }

// Mode returns the current mode.
func (dp *Datapath) Mode() (Mode, error) {
	if err := dp.checkOpen(); err != nil {
		return 0, err
	}
	if dp.dryMode != nil {
		return *dp.dryMode, nil
	}
	cfg, err := dp.config()
	return Mode(cfg.Mode), err
}

// SetMode switches the mode and returns when no hook works in the old one any more. Without force it
// refuses, with an error wrapping [ErrUnsafeMode], to stop reading a state that sockets rely on, or to
// read again a hash that nobody has kept up to date: migrating or rolling back moves it first.
//
// Other errors wrap [ErrInvalid], [ErrLocked], [ErrStale] or [ErrClosed].
func (dp *Datapath) SetMode(ctx context.Context, mode Mode, force bool) error {
	locked, err := dp.Lock(ctx)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	return locked.SetMode(mode, force)
}

// PlanMode says what [Datapath.SetMode] would change. It fails as that would.
func (dp *Datapath) PlanMode(ctx context.Context, mode Mode, force bool) (changes []Change, err error) {
	if err := dp.checkOpen(); err != nil {
		return nil, err
	}
	dry := &Datapath{opts: dp.opts.planning(&changes), maps: dp.maps}
	err = dry.SetMode(ctx, mode, force)
	return changes, err
}

func (dp *Datapath) setMode(ctx context.Context, mode Mode, force bool) error {
	if err := mode.check(); err != nil {
		return err
	}
	current, err := dp.Mode()
	if err != nil || current == mode {
		return err
	}
	if !force {
		// In mode storage the hooks do not look after the hash, so what it holds is outdated.
		// In mode mirror both are to say the same.
		if mode == ModeStorage || current == ModeStorage || mode == ModeMirror {
			err = dp.checkLegacyEmpty()
		}
		if err == nil && (mode == ModeLegacy || mode == ModeMirror) {
			err = dp.checkStorageEmpty(ctx)
		}
		if err != nil {
			return err
		}
	}
	return dp.writeMode(mode)
}

func (dp *Datapath) writeMode(mode Mode) error {
	if dp.opts.dryRun {
		dp.dryMode = &mode
		dp.opts.changed(ActionSwitch, mode.String())
		return nil
	}
	if err := allowMaps(); err != nil {
		return err
	}
	if err := dp.putMode(mode); err != nil {
		return err
	}
	dp.opts.changed(ActionSwitch, mode.String())
	dp.opts.Logger.Info("switched mode", "mode", mode)
	return nil
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
	return nil
}

// checkLegacyEmpty returns an error wrapping ErrUnsafeMode if the hash holds entries.
func (dp *Datapath) checkLegacyEmpty() error {
	for _, name := range []string{mapReverse4, mapReverse6} {
		m := dp.maps[name]
		if m == nil {
			continue
		}
		key, err := m.NextKeyBytes(nil)
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if key != nil {
			return fmt.Errorf("%w: %s has entries", ErrUnsafeMode, name)
		}
	}
	return nil
}

// restoreMode registers that the mode becomes what it is now.
func (dp *Datapath) restoreMode(undo *undoer) error {
	mode, err := dp.Mode()
	if err != nil || dp.opts.dryRun {
		return err
	}
	undo.add(func() error { return dp.putMode(mode) })
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

// exists tells whether there is something, be it that this process may not see it.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
