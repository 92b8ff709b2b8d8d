// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/bpfiter"
)

// programs are those of bpf/iter/fill.c and descriptor.c, and the entries that they are to move.
type programs struct {
	*socketEntries
	iterators *ebpf.Collection // nil: sockets are visited by descriptor only
	// descriptors are those that visit sockets by descriptor, which take the kernel long to check: loaded when the first socket
	// needs them.
	descriptors *ebpf.Collection
	// maps are those of the entries, which both have, and the datapath's.
	maps map[string]*ebpf.Map
	own  []*ebpf.Map
	// handed is the array of entries, which this process shares with the programs.
	handed []iter.FillRevskImportEntry
	// states are what the programs say of the sockets, by number.
	states []iter.FillRevskImportSocket
	// unreached is why programs have not reached sockets, if that is known.
	unreached error
	// withoutRoom are the sockets, by number, that have no memory even for the request to visit them.
	withoutRoom map[int]bool
	// locked are those that a process keeps locked.
	locked map[int]bool
}

var (
	iteratorPrograms   = []string{iter.FillProgFillTcp, iter.FillProgFillUdp, iter.FillProgFindFiles}
	descriptorPrograms = []string{iter.DescriptorProgFillDescriptor, iter.DescriptorProgGrowDescriptor, iter.DescriptorProgNoteCaller}
)

// loadPrograms loads what the engine needs, with room for so many entries. datapath are the maps to work on, by name.
func loadPrograms(engine Engine, datapath map[string]*ebpf.Map, room int) (_ *programs, err error) {
	p := &programs{maps: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for name, m := range datapath {
		p.maps[name] = m
	}
	spec, err := iter.LoadFill()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{iter.FillMapRevskImport, iter.FillMapRevskImportSockets} {
		s := spec.Maps[name]
		s.MaxEntries = uint32(max(1, room))
		if name == iter.FillMapRevskImport {
			s.Flags |= unix.BPF_F_MMAPABLE
		}
		m, err := ebpf.NewMap(s)
		if err != nil {
			return nil, fmt.Errorf("making a map for entries: %w", err)
		}
		p.maps[name] = m
		p.own = append(p.own, m)
	}
	if p.handed, err = mapEntries(p.maps[iter.FillMapRevskImport]); err != nil {
		return nil, fmt.Errorf("mapping the entries: %w", err)
	}
	if engine == EngineIter {
		p.iterators, err = p.load(spec, iteratorPrograms)
		return p, err
	}
	return p, p.loadDescriptors()
}

// entrySize is that of struct revsk_import_entry.
const entrySize = int(unsafe.Sizeof(iter.FillRevskImportEntry{}))

// mapEntries makes the entries of an array memory of this process.
func mapEntries(m *ebpf.Map) ([]iter.FillRevskImportEntry, error) {
	n := int(m.MaxEntries())
	b, err := unix.Mmap(m.FD(), 0, n*entrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*iter.FillRevskImportEntry)(unsafe.Pointer(&b[0])), n), nil
}

func unmapEntries(entries []iter.FillRevskImportEntry) {
	if entries != nil {
		_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&entries[0])), len(entries)*entrySize))
	}
}

// loadDescriptors loads the programs that visit sockets by descriptor, unless they are.
func (p *programs) loadDescriptors() error {
	if p.descriptors != nil {
		return nil
	}
	spec, err := iter.LoadDescriptor()
	if err != nil {
		return err
	}
	p.descriptors, err = p.load(spec, descriptorPrograms)
	return err
}

func (p *programs) load(spec *ebpf.CollectionSpec, names []string) (*ebpf.Collection, error) {
	for name := range spec.Programs {
		if !slices.Contains(names, name) {
			delete(spec.Programs, name)
		}
	}
	keepUsed(spec)
	replacements := make(map[string]*ebpf.Map)
	for name, m := range p.maps {
		if s := spec.Maps[name]; s != nil && m != nil {
			// What is pinned may have other sizes and flags; the loader has checked the layout.
			info, err := m.Info()
			if err != nil {
				return nil, err
			}
			s.MaxEntries, s.Flags = m.MaxEntries(), info.Flags
			replacements[name] = m
		}
	}
	return bpfiter.Load(spec, replacements)
}

func (p *programs) close() {
	for _, c := range []*ebpf.Collection{p.iterators, p.descriptors} {
		if c != nil {
			c.Close()
		}
	}
	unmapEntries(p.handed)
	for _, m := range p.own {
		m.Close()
	}
}

// room is for how many entries there is room.
func (p *programs) room() int { return len(p.handed) }

// keepUsed drops the maps of the datapath that none of the programs uses.
func keepUsed(spec *ebpf.CollectionSpec) {
	used := map[string]bool{
		iter.FillMapRevskImport:        true,
		iter.FillMapRevskImportSockets: true,
	}
	for _, prog := range spec.Programs {
		for _, ins := range prog.Instructions {
			used[ins.Reference()] = true
		}
	}
	for name := range spec.Maps {
		if !used[name] && !strings.HasPrefix(name, ".") {
			delete(spec.Maps, name)
		}
	}
}

// take hands entries to the programs, in the place of those before. They are not more than there is room for.
func (p *programs) take(entries []*entry) error {
	if err := p.takeBack(); err != nil {
		return err
	}
	p.socketEntries, p.unreached = bySocket(entries), nil
	p.withoutRoom, p.locked = make(map[int]bool), make(map[int]bool)
	p.states = make([]iter.FillRevskImportSocket, len(p.cookies))
	for i := range p.states {
		p.states[i].First, p.states[i].Count = p.first[i], p.first[i+1]-p.first[i]
	}
	for i, e := range p.entries {
		w := &p.handed[i]
		*w = iter.FillRevskImportEntry{PeerPort: e.key.Port, ServicePort: e.value.Port, RevNatIndex: e.value.RevNat}
		w.Peer.Bytes, w.Service.Bytes = e.key.Addr, e.value.Addr
		if e.stale {
			w.Stale = 1
		}
	}
	err := batch.Write(p.maps[iter.FillMapRevskImportSockets], p.cookies, p.states)
	for _, c := range []*ebpf.Collection{p.iterators, p.descriptors} {
		if c != nil && err == nil {
			err = c.Variables[iter.FillVarRevskJudged].Set(uint64(0))
		}
	}
	if p.iterators != nil && err == nil {
		err = p.iterators.Variables[iter.FillVarRevskWithoutRoom].Set(uint64(0))
	}
	if err != nil {
		return fmt.Errorf("handing entries to the programs: %w", err)
	}
	return nil
}

// takeBack leaves the programs without entries: also one that runs.
func (p *programs) takeBack() error {
	if p.socketEntries == nil {
		return nil
	}
	if err := batch.Delete(p.maps[iter.FillMapRevskImportSockets], p.cookies); err != nil {
		return fmt.Errorf("taking entries from the programs: %w", err)
	}
	return nil
}

// allJudged tells whether the iterators over tables have judged all entries, and no socket needs more room. Then it does
// not matter which process has it open.
func (p *programs) allJudged() (bool, error) {
	var judged, withoutRoom uint64
	err := errors.Join(
		p.iterators.Variables[iter.FillVarRevskJudged].Get(&judged), p.iterators.Variables[iter.FillVarRevskWithoutRoom].Get(&withoutRoom))
	if err != nil {
		return false, fmt.Errorf("reading how many entries were judged: %w", err)
	}
	return int(judged) == len(p.entries) && withoutRoom == 0, nil
}

// readStates reads what the programs say of the sockets.
func (p *programs) readStates() error {
	err := batch.Each(p.maps[iter.FillMapRevskImportSockets], func(cookie uint64, s iter.FillRevskImportSocket) {
		if number, ok := p.number(cookie); ok {
			p.states[number] = s
		}
	})
	if err != nil {
		return fmt.Errorf("reading which sockets were met: %w", err)
	}
	return nil
}

// judge reads what has become of the entries. Of those that no program has visited it decides by where
// else their sockets were seen; open is how many they are.
func (p *programs) judge() (open int, err error) {
	for number := range p.cookies {
		for i := p.first[number]; i < p.first[number+1]; i++ {
			e, result := p.entries[i], iter.FillRevskResult(p.handed[i].Result)
			if result == iter.FillRevskResultREVSK_RESULT_NOT_MET && p.withoutRoom[number] {
				result = iter.FillRevskResultREVSK_RESULT_NO_ROOM
			}
			if e.judge(result) {
				continue
			}
			if open == 0 {
				if err := p.readStates(); err != nil {
					return 0, err
				}
			}
			e.judgeUnvisited(p.sightings()[number].seen || p.states[number].Seen != 0)
			if e.result == ResultUnknown && p.unreached != nil {
				e.why += ": " + p.unreached.Error()
			}
			if p.locked[number] {
				e.why = "a process keeps its socket locked"
			}
			open++
		}
	}
	return open, nil
}
