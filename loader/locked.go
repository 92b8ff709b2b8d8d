// SPDX-License-Identifier: Apache-2.0

package loader

import "context"

// Locked is a datapath that no other process can change until Unlock. It serves work of several steps,
// such as a migration. Only [Datapath.Lock] makes one.
type Locked struct {
	*Datapath
	unlock func()
}

// Lock takes the lock that loading, unloading and switching the mode take. It ends with the process.
//
// Returns an error wrapping [ErrLocked].
func (dp *Datapath) Lock(ctx context.Context) (*Locked, error) {
	unlock, err := lock(ctx, dp.opts.PinsDir, dp.opts.Wait)
	if err != nil {
		return nil, err
	}
	return &Locked{dp, unlock}, nil
}

// Unlock lets others in.
func (l *Locked) Unlock() { l.unlock() }

// SetMode is [Datapath.SetMode] for the one who has the lock.
func (l *Locked) SetMode(mode Mode, force bool) error { return l.setMode(mode, force) }

// UnpinLegacy removes the pins of the legacy maps. Loaded programs keep the maps; a later Load makes new
// ones.
func (l *Locked) UnpinLegacy() error {
	for _, name := range []string{mapReverse4, mapReverse6} {
		if err := l.opts.removePin(l.opts.pinPath(name)); err != nil {
			return err
		}
	}
	return nil
}
