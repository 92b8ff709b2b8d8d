// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// Locked is a datapath that no other process can change until Unlock. It serves work of several steps,
// such as a migration. Only [OpenLocked] and [Datapath.Lock] make one.
type Locked struct {
	*Datapath
	ctx    context.Context // of the call of Lock
	unlock func()
}

// Lock takes the lock that loading, unloading and switching the mode take. It ends with the process.
//
// Returns an error wrapping [ErrLocked], [ErrStale] or [ErrClosed].
func (dp *Datapath) Lock(ctx context.Context) (*Locked, error) {
	if err := dp.checkOpen(); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, dp.opts.PinsDir, dp.opts.Wait)
	if isGone(err) {
		return nil, fmt.Errorf("%s: %w", dp.opts.PinsDir, ErrStale)
	}
	if err != nil {
		return nil, err
	}
	if err := dp.checkCurrent(true); err != nil {
		unlock()
		return nil, err
	}
	return &Locked{dp, ctx, unlock}, nil
}

// OpenLocked is [Open] for the one who changes the datapath next. It takes the lock first: while another
// process loads, it waits as [Options.Wait] says. Close what it returns after Unlock.
//
// Returns the errors of Open, or one wrapping [ErrLocked].
func OpenLocked(ctx context.Context, opts Options) (*Locked, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkSurroundings(); err != nil {
		return nil, err
	}
	for {
		unlock, err := lock(ctx, opts.PinsDir, opts.Wait)
		if isGone(err) && exists(opts.PinsDir) && ctx.Err() == nil {
			continue // whoever had the lock has removed the directory, and there is another
		}
		if isGone(err) {
			return nil, fmt.Errorf("%s: %w", opts.PinsDir, ErrNotLoaded)
		}
		if err != nil {
			return nil, err
		}
		dp, err := Open(opts)
		if err != nil {
			unlock()
			return nil, err
		}
		return &Locked{dp, ctx, unlock}, nil
	}
}

// isGone tells whether a lock could not be taken because its directory is not there any more.
func isGone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNotLoaded) }

// checkCurrent returns an error wrapping ErrStale if other maps are pinned than those that were opened, with own false
// of those of the load balancer.
func (dp *Datapath) checkCurrent(own bool) error {
	for name, m := range dp.maps {
		if !own && ownMap(name) {
			continue
		}
		path := dp.opts.pinPath(name)
		pinned, err := openPinnedMap(path)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", path, ErrStale)
		}
		if err != nil {
			return err
		}
		opened, err := mapID(m)
		now, pinErr := mapID(pinned)
		pinned.Close()
		if err := errors.Join(err, pinErr); err != nil {
			return err
		}
		if opened != now {
			return fmt.Errorf("%s: %w", path, ErrStale)
		}
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("reading about %v: %w", m, present(err))
	}
	id, _ := info.ID()
	return id, nil
}

// Unlock lets others in.
func (l *Locked) Unlock() { l.unlock() }

// SetMode is [Datapath.SetMode] for the one who has the lock.
func (l *Locked) SetMode(mode Mode, force bool) error { return l.setMode(l.ctx, mode, force) }

// UnpinLegacy removes the pins of the legacy maps. Loaded programs keep the maps; a later Load makes new
// ones.
func (l *Locked) UnpinLegacy() (err error) {
	a := &applier{opts: l.opts, dp: l.Datapath}
	defer a.finish(&err)
	return a.apply(l.ctx, []step{
		unpin{path: l.opts.pinPath(mapReverse4), kind: aMap, said: true},
		unpin{path: l.opts.pinPath(mapReverse6), kind: aMap, said: true},
	})
}
