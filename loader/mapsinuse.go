// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// checkMissingPins makes sure that no map is made in the place of one that attached programs use and that
// has entries: they would be without them from then on. Returns an error wrapping [ErrMapsReplaced].
func checkMissingPins(opts Options, spec *ebpf.CollectionSpec) error {
	missing := make(map[string]*ebpf.MapSpec)
	for name, s := range spec.Maps {
		if pinnable(name) && !ownMap(name) && !exists(opts.pinPath(name)) {
			missing[name] = s
		}
	}
	if len(missing) == 0 {
		return nil
	}
	programs, err := attachedPrograms(opts)
	if err != nil {
		return err
	}
	for _, id := range programs {
		used, err := mapsOf(id)
		if err != nil {
			return err
		}
		for _, mapID := range used {
			if err := checkUnpinned(opts, mapID, missing); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkUnpinned returns an error if a map that is in use has entries and is one of those that are missing.
func checkUnpinned(opts Options, id ebpf.MapID, missing map[string]*ebpf.MapSpec) error {
	m, err := openMapID(id)
	if m == nil {
		return err
	}
	defer m.Close()
	for name, s := range missing {
		if same, err := isMap(m, s); err != nil || !same {
			if err != nil {
				return err
			}
			continue
		}
		key, err := m.NextKeyBytes(nil)
		if err != nil {
			return fmt.Errorf("reading map %d: %w", id, err)
		}
		if key != nil {
			path := opts.pinPath(name)
			return fmt.Errorf("%w: nothing is pinned at %s, and attached programs use a map with entries (to pin it there: bpftool map pin id %d %s)",
				ErrMapsReplaced, path, id, path)
		}
	}
	return nil
}

// attachedPrograms are those in the links of this datapath, and the reference's.
func attachedPrograms(opts Options) (ids []ebpf.ProgramID, err error) {
	for _, h := range hooks {
		s, err := findSeat(opts, h)
		if err != nil {
			return nil, err
		}
		s.Close()
		if s.live() {
			ids = append(ids, s.now.id)
		}
		beside, err := referenceBeside(opts, s)
		if err != nil {
			return nil, err
		}
		if beside.id != 0 {
			ids = append(ids, beside.id)
		}
	}
	return ids, nil
}

// mapsOf are the maps that a program uses; none if it is gone.
func mapsOf(id ebpf.ProgramID) ([]ebpf.MapID, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, describe(fmt.Errorf("opening program %d: %w", id, err))
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil, fmt.Errorf("reading about program %d: %w", id, present(err))
	}
	used, _ := info.MapIDs()
	return used, nil
}

// openMapID opens a map by its id; nil if it is gone.
func openMapID(id ebpf.MapID) (*ebpf.Map, error) {
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, describe(fmt.Errorf("opening map %d: %w", id, err))
	}
	return m, nil
}

// isMap tells whether a map is what the spec describes: by type, sizes and the name, as far as the kernel
// keeps it: together they are different for each map of the programs. A map may have no name.
func isMap(m *ebpf.Map, spec *ebpf.MapSpec) (bool, error) {
	if m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize {
		return false, nil
	}
	info, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("reading about %v: %w", m, present(err))
	}
	return info.Name == "" || info.Name == kept(spec.Name), nil
}

// kept is what the kernel keeps of a name.
func kept(name string) string { return name[:min(unix.BPF_OBJ_NAME_LEN-1, len(name))] }
