// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
)

// Unload detaches the hooks. The maps stay pinned, so that sockets keep what they remember and a
// later Load goes on with it. Purge removes this datapath's own maps too: what live sockets remember
// is gone then, and their next answer shows a backend's address. The load balancer's maps stay in
// either case.
//
// Hooks that were taken over from another agent are for [HandBack]. With [Options.Force] they are
// detached, too: the agent's links are dead then, and its programs gone.
//
// Returns an error wrapping [ErrNotLoaded], [ErrTakenOver] or [ErrLocked].
func Unload(ctx context.Context, opts Options, purge bool) error {
	return removing(ctx, opts, unload(purge))
}

// PlanUnload says what [Unload] would change. It fails as that would.
func PlanUnload(ctx context.Context, opts Options, purge bool) (changes []Change, err error) {
	err = removing(ctx, opts.planning(&changes), unload(purge))
	return changes, err
}

func unload(purge bool) func(Options) error {
	return func(opts Options) error {
		taken := func(h hook) bool { return exists(opts.formerPath(h)) }
		if slices.ContainsFunc(hooks, taken) && !opts.Force {
			return fmt.Errorf("%s: %w", opts.PinsDir, ErrTakenOver)
		}
		return remove(opts, nil, purge)
	}
}

// removing calls f with the complete options and the lock of what is to be removed.
func removing(ctx context.Context, opts Options, f func(Options) error) error {
	opts, err := opts.WithDefaults()
	if err != nil {
		return err
	}
	if err := checkSurroundings(); err != nil {
		return err
	}
	if !exists(opts.PinsDir) {
		return fmt.Errorf("%s: %w", opts.PinsDir, ErrNotLoaded)
	}
	unlock, err := lock(ctx, opts.PinsDir, opts.Wait)
	if err != nil {
		return err
	}
	defer unlock()
	return f(opts)
}

// remove detaches what is not back already, and removes the pins.
func remove(opts Options, back map[string]bool, purge bool) error {
	// Writers first, the reverse of attaching: what is written is read to the last.
	for _, h := range slices.Backward(hooks) {
		if err := removeHook(opts, h, back[h.program]); err != nil {
			return err
		}
	}
	if err := cleanAside(opts, true); err != nil {
		return err
	}
	if err := opts.removePin(opts.linksDir()); err != nil {
		return err
	}
	if purge {
		if err := removeMaps(opts); err != nil {
			return err
		}
	}
	// After the maps: as long as it is there, a hand-back that was cut short can go on.
	if err := removeFormerDir(opts); err != nil || !purge {
		return err
	}
	return opts.removePin(opts.PinsDir)
}

func removeHook(opts Options, h hook, back bool) error {
	s, err := findSeat(opts, h)
	if err != nil {
		return err
	}
	defer s.Close()
	if back {
		return opts.unpinSeat(s)
	}
	return s.detach(opts)
}

// removeMaps removes the pins of this datapath's own maps.
func removeMaps(opts Options) error {
	spec, err := sock.LoadSock()
	if err != nil {
		return fmt.Errorf("reading the compiled programs: %w", err)
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !ownMap(name) })
	spec.Maps[mapFeatures] = &ebpf.MapSpec{Type: ebpf.Array}
	for _, name := range mapNames(spec) {
		path := filepath.Join(opts.PinsDir, name)
		same, err := hasType(path, spec.Maps[name].Type)
		if err != nil {
			return err
		}
		if !same {
			opts.changed(ActionLeave, path)
			continue
		}
		if err := opts.removePin(path); err != nil {
			return err
		}
	}
	return nil
}

// hasType tells whether what is pinned is a map of a type, of whatever layout, or nothing.
func hasType(path string, t ebpf.MapType) (bool, error) {
	m, err := openPinnedMap(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case errors.Is(err, ErrNotAPin):
		return false, nil
	case err != nil:
		return false, err
	}
	defer m.Close()
	return m.Type() == t, nil
}

// removeFormerDir removes the directory of the former programs, and what a call that was cut short has
// left in it.
func removeFormerDir(opts Options) error {
	dir := opts.formerDir()
	left, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range left {
		if opts.dryRun {
			break
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return opts.removePin(dir)
}
