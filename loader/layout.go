// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/revsk/revsk/internal/bpfiter"
)

// What sockets hold is in maps whose names end with the version of their layout; a name without one is
// version 1. Programs that have maps of two versions read what is in the older ones, and write the newer ones
// only (docs/design.md).

// constantOlder tells the programs that maps of the layout before may have values.
const constantOlder = "cfg_older_layout"

var versioned = regexp.MustCompile(`^(.*)_v([0-9]+)$`)

// cutVersion returns the name of a map without its version.
func cutVersion(name string) (base string, version int) {
	if m := versioned.FindStringSubmatch(name); m != nil {
		version, _ = strconv.Atoi(m[2])
		return m[1], version
	}
	return name, 1
}

// nextVersion is the name of a map in the layout after.
func nextVersion(name string) string {
	base, version := cutVersion(name)
	return fmt.Sprintf("%s_v%d", base, version+1)
}

// isOlder tells the maps of the layout before from those of the programs' own.
func isOlder(name string, specs map[string]*ebpf.MapSpec) bool {
	return ownMap(name) && specs[nextVersion(name)] != nil
}

// otherMap is a map of a layout that the programs do not know.
type otherMap struct {
	pin    string
	needed bool // attached programs use it, or sockets have values in it
}

// findOtherMaps looks for such maps.
func (o *observation) findOtherMaps() error {
	bases := make(map[string]bool)
	for name := range o.specs {
		base, _ := cutVersion(name)
		bases[base] = true
	}
	for _, name := range o.dirs[o.opts.PinsDir] {
		if base, _ := cutVersion(name); !bases[base] || o.specs[name] != nil {
			continue
		}
		other := otherMap{pin: filepath.Join(o.opts.PinsDir, name)}
		m, err := openPinnedMap(other.pin)
		if errors.Is(err, ErrNotAPin) {
			continue
		}
		if err != nil {
			return err
		}
		id, err := mapID(m)
		if err == nil {
			other.needed, err = hasValues(m)
		}
		m.Close()
		if err != nil {
			return fmt.Errorf("reading %s: %w", other.pin, err)
		}
		for i := range o.hooks {
			other.needed = other.needed || slices.ContainsFunc(o.hooks[i].on, func(a attachment) bool { return slices.Contains(a.maps, id) })
		}
		o.others = append(o.others, other)
	}
	return nil
}

// checkVersions makes sure that sockets remember nothing in maps of another release, which ours would not
// read. In mode legacy they remember nothing.
func (o *observation) checkVersions() error {
	i := slices.IndexFunc(o.others, func(m otherMap) bool { return m.needed })
	if i < 0 || o.loaded && o.mode == ModeLegacy {
		return nil
	}
	return fmt.Errorf("%s: %w: it is of another release; in mode legacy, after a rollback by that release, no socket needs it", o.others[i].pin, ErrLayout)
}

// planVersions removes the maps of other layouts that no program uses any more: the values of those that ours
// do not know would be outdated for the next release that knows them.
func (o *observation) planVersions() (steps []step) {
	for _, m := range o.others {
		steps = append(steps, unpin{path: m.pin, kind: aMap, said: true})
	}
	for i := range o.maps {
		if s := &o.maps[i]; s.done {
			steps = append(steps, unpin{path: s.pin, kind: aMap, said: true})
		}
	}
	return steps
}

// newer is the state of the map that takes the place of an older one.
func (o *observation) newer(s *mapState) *mapState { return o.mapNamed(nextVersion(s.name)) }

func (s *mapState) usedByOurs() bool {
	return slices.ContainsFunc(s.used, func(use mapUse) bool { return use.own })
}

// changesLayout tells whether programs of ours run that know the layout before only.
func (o *observation) changesLayout() bool {
	return slices.ContainsFunc(o.maps, func(s mapState) bool {
		return isOlder(s.name, o.specs) && s.usedByOurs() && !o.newer(&s).usedByOurs()
	})
}

// lookAtOlderMaps finds out whether those of the layout before are done with: no program writes them, and no
// socket has a value in them.
func (o *observation) lookAtOlderMaps() error {
	for i := range o.maps {
		s := &o.maps[i]
		if !isOlder(s.name, o.specs) || !o.newer(s).usedByOurs() || s.err != nil {
			continue
		}
		m, err := openPinnedMap(s.pin)
		if err != nil {
			return err
		}
		has, err := hasValues(m)
		m.Close()
		if err != nil {
			return fmt.Errorf("reading %s: %w", s.name, err)
		}
		s.done = !has
	}
	return nil
}

// prepareOlder tells the programs whether there are maps of the layout before. Where there are none, the
// programs get some of their own, which they do not look at.
func (a *applier) prepareOlder(o *observation) error {
	have, known := false, false
	for name := range a.spec.Maps {
		if !isOlder(name, a.spec.Maps) {
			continue
		}
		known = true
		m := a.dp.maps[name]
		if m != nil && o.mapNamed(name).done {
			m.Close()
			delete(a.dp.maps, name)
			m = nil
		}
		have = have || m != nil
	}
	if !known {
		return nil
	}
	return setConstants(a.spec, map[string]any{constantOlder: have})
}

// hasValues tells whether a socket has a value in a map of socket storage.
func hasValues(m *ebpf.Map) (bool, error) {
	seen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return false, describe(err)
	}
	defer seen.Close()
	const valueOfContext = 24 // struct bpf_iter__bpf_sk_storage_map
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "revsk_values", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "bpf_sk_storage_map",
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, valueOfContext, asm.DWord),
			asm.JEq.Imm(asm.R1, 0, "none"),
			asm.LoadMapValue(asm.R1, seen.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreMem(asm.R1, 0, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("none"),
			asm.Return(),
		},
	})
	if err != nil {
		return false, describe(err)
	}
	defer prog.Close()
	if _, err := bpfiter.RunProgram(context.Background(), prog, m); err != nil {
		return false, describe(err)
	}
	var n uint64
	err = seen.Lookup(uint32(0), &n)
	return n != 0, err
}
