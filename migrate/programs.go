// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/lbmap"
)

// programs are those of bpf/iter/fill.c, and the entries that they are to move.
type programs struct {
	*socketEntries
	iterators *ebpf.Collection // nil: sockets are visited by descriptor only
	// descriptors are those that visit sockets by descriptor, which take the kernel long to check: loaded when the first socket
	// needs them.
	descriptors *ebpf.Collection
	// maps are those of the entries, which both have, and the datapath's.
	maps map[string]*ebpf.Map
	own  []*ebpf.Map
	// states are what the programs say of the sockets, by number.
	states []iter.FillRevskImportSocket
	// unreached is why programs have not reached sockets, if that is known.
	unreached error
	// withoutRoom are the sockets, by number, that have no memory even for the request to visit them.
	withoutRoom map[int]bool
}

var (
	iteratorPrograms   = []string{iter.FillProgFillTcp, iter.FillProgFillUdp, iter.FillProgFindFiles}
	descriptorPrograms = []string{iter.FillProgFillDescriptor, iter.FillProgGrowDescriptor, iter.FillProgNoteCaller}
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
		m, err := ebpf.NewMap(s)
		if err != nil {
			return nil, fmt.Errorf("making a map for entries: %w", err)
		}
		p.maps[name] = m
		p.own = append(p.own, m)
	}
	if engine == EngineIter {
		p.iterators, err = p.load(spec, iteratorPrograms)
		return p, err
	}
	return p, p.loadDescriptors()
}

// loadDescriptors loads the programs that visit sockets by descriptor, unless they are.
func (p *programs) loadDescriptors() error {
	if p.descriptors != nil {
		return nil
	}
	spec, err := iter.LoadFill()
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
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements, Cache: bpfiter.Types})
}

func (p *programs) close() {
	for _, c := range []*ebpf.Collection{p.iterators, p.descriptors} {
		if c != nil {
			c.Close()
		}
	}
	for _, m := range p.own {
		m.Close()
	}
}

// room is for how many entries there is room.
func (p *programs) room() int { return int(p.maps[iter.FillMapRevskImport].MaxEntries()) }

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
	sockets := p.maps[iter.FillMapRevskImportSockets]
	if p.socketEntries != nil {
		if err := batch.Delete(sockets, p.cookies); err != nil {
			return fmt.Errorf("taking entries from the programs: %w", err)
		}
	}
	p.socketEntries, p.unreached, p.withoutRoom = bySocket(entries), nil, make(map[int]bool)
	p.states = make([]iter.FillRevskImportSocket, len(p.cookies))
	for i := range p.states {
		p.states[i].First, p.states[i].Count = p.first[i], p.first[i+1]-p.first[i]
	}
	err := batch.Write(sockets, p.cookies, p.states)
	index := make([]uint32, 0, handedAtOnce)
	wire := make([]iter.FillRevskImportEntry, 0, handedAtOnce)
	for i, e := range p.entries {
		if err != nil {
			break
		}
		w := iter.FillRevskImportEntry{
			PeerPort: e.key.Port, ServicePort: e.value.Port, RevNatIndex: e.value.RevNat,
		}
		w.Peer.Bytes, w.Service.Bytes = e.key.Addr, e.value.Addr
		if e.stale {
			w.Stale = 1
		}
		index, wire = append(index, uint32(i)), append(wire, w)
		if len(index) == handedAtOnce || i+1 == len(p.entries) {
			err = batch.Write(p.maps[iter.FillMapRevskImport], index, wire)
			index, wire = index[:0], wire[:0]
		}
	}
	for _, c := range []*ebpf.Collection{p.iterators, p.descriptors} {
		if c != nil && err == nil {
			err = errors.Join(c.Variables[iter.FillVarRevskJudged].Set(uint64(0)), c.Variables[iter.FillVarRevskWithoutRoom].Set(uint64(0)))
		}
	}
	if err != nil {
		return fmt.Errorf("handing entries to the programs: %w", err)
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

// handedAtOnce is how many entries are put together for the programs at once.
const handedAtOnce = 8192

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
	if err := p.readStates(); err != nil {
		return 0, err
	}
	number := 0
	err = batch.Each(p.maps[iter.FillMapRevskImport], func(i uint32, w iter.FillRevskImportEntry) {
		if int(i) >= len(p.entries) {
			return
		}
		// They come in order.
		for p.first[number+1] <= i {
			number++
		}
		e, seen := p.entries[i], p.seen[number]
		if s := &p.states[number]; s.Seen != 0 {
			seen = sighting{seen: true, family: s.Family, protocol: lbmap.Protocol(s.Protocol)}
		}
		if seen.seen {
			e.family, e.protocol = seen.family, seen.protocol
		}
		result := iter.FillRevskResult(w.Result)
		if result == iter.FillRevskResultREVSK_RESULT_NOT_MET && p.withoutRoom[number] {
			result = iter.FillRevskResultREVSK_RESULT_NO_ROOM
		}
		if !e.judge(result) {
			e.judgeUnvisited(seen.seen)
			if e.result == ResultUnknown && p.unreached != nil {
				e.why += ": " + p.unreached.Error()
			}
			open++
		}
	})
	if err != nil {
		return 0, fmt.Errorf("reading what has become of entries: %w", err)
	}
	return open, nil
}
