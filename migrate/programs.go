// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
)

// programs are those of bpf/iter/fill.c, and the entries that they are to move.
type programs struct {
	*ebpf.Collection
	entries []*entry // in the order of the array
	cookies []uint64 // ascending
	sockets map[uint64]*iter.FillRevskImportSocket
	seen    map[uint64]*sighting // without a program
	// unreached is why programs have not reached sockets, if that is known.
	unreached error
}

// programOptions say how the programs are loaded.
type programOptions struct {
	engine       Engine
	dryRun       bool
	backends     []backendKey // whose sockets without entry are counted
	replacements map[string]*ebpf.Map
}

type backendKey struct {
	addr     netip.AddrPort
	protocol lbmap.Protocol
}

// loadPrograms loads what the engine needs and hands it the entries.
func loadPrograms(opts programOptions, entries []*entry) (*programs, error) {
	p := &programs{
		entries: entries,
		sockets: make(map[uint64]*iter.FillRevskImportSocket),
		seen:    make(map[uint64]*sighting),
	}
	p.sort()
	spec, err := iter.LoadFill()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{iter.FillProgFillTcp, iter.FillProgFillUdp, iter.FillProgFindFiles} {
		if opts.engine != EngineIter {
			delete(spec.Programs, name)
		}
	}
	if opts.dryRun {
		delete(spec.Programs, iter.FillProgFillDescriptor)
		delete(spec.Programs, iter.FillProgGrowDescriptor)
		delete(spec.Programs, iter.FillProgNoteCaller)
	}
	if err := spec.Variables[iter.FillVarCfgDryRun].Set(opts.dryRun); err != nil {
		return nil, err
	}
	if err := spec.Variables[iter.FillVarCfgCountWithoutEntry].Set(len(opts.backends) > 0); err != nil {
		return nil, err
	}
	spec.Maps[iter.FillMapRevskImport].MaxEntries = uint32(max(1, len(entries)))
	spec.Maps[iter.FillMapRevskImportSockets].MaxEntries = uint32(max(1, len(p.cookies)))
	spec.Maps[iter.FillMapRevskImportBackends].MaxEntries = uint32(max(1, len(opts.backends)))
	keepUsed(spec)
	replacements := make(map[string]*ebpf.Map)
	for name, m := range opts.replacements {
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
	if p.Collection, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements}); err != nil {
		return nil, err
	}
	if err := p.fill(opts.backends); err != nil {
		p.Close()
		return nil, fmt.Errorf("handing entries to the programs: %w", err)
	}
	return p, nil
}

// keepUsed drops the maps of the datapath that none of the programs uses.
func keepUsed(spec *ebpf.CollectionSpec) {
	used := map[string]bool{
		iter.FillMapRevskImport:         true,
		iter.FillMapRevskImportSockets:  true,
		iter.FillMapRevskImportBackends: true,
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

// sort puts the entries of a socket side by side.
func (p *programs) sort() {
	slices.SortFunc(p.entries, func(a, b *entry) int {
		// Most sockets have one entry: addresses are compared only where it matters.
		if c := cmp.Compare(a.key.Cookie, b.key.Cookie); c != 0 {
			return c
		}
		return cmp.Or(bytes.Compare(a.key.Addr[:], b.key.Addr[:]), cmp.Compare(a.key.Port, b.key.Port))
	})
	for i, e := range p.entries {
		s := p.sockets[e.key.Cookie]
		if s == nil {
			s = &iter.FillRevskImportSocket{First: uint32(i)}
			p.sockets[e.key.Cookie] = s
			p.cookies = append(p.cookies, e.key.Cookie)
		}
		s.Count++
	}
}

// has tells whether a socket has an entry for a backend.
func (p *programs) has(cookie uint64, backend netip.AddrPort) bool {
	s := p.sockets[cookie]
	if s == nil {
		return false
	}
	return slices.ContainsFunc(p.entries[s.First:s.First+s.Count], func(e *entry) bool { return e.key.backend() == backend })
}

func (p *programs) fill(backends []backendKey) error {
	index := make([]uint32, len(p.entries))
	wire := make([]iter.FillRevskImportEntry, len(p.entries))
	for i, e := range p.entries {
		index[i] = uint32(i)
		w := &wire[i]
		w.Peer.Bytes, w.PeerPort = e.key.Addr, e.key.Port
		w.Service.Bytes, w.ServicePort = e.value.Addr, e.value.Port
		w.RevNatIndex = e.value.RevNat
		if e.stale {
			w.Stale = 1
		}
	}
	if err := batch.Write(p.Maps[iter.FillMapRevskImport], index, wire); err != nil {
		return err
	}
	sockets := make([]iter.FillRevskImportSocket, len(p.cookies))
	for i, cookie := range p.cookies {
		sockets[i] = *p.sockets[cookie]
	}
	if err := batch.Write(p.Maps[iter.FillMapRevskImportSockets], p.cookies, sockets); err != nil {
		return err
	}
	keys := make([]iter.FillRevskBackendKey, len(backends))
	for i, b := range backends {
		keys[i].Addr.Bytes, keys[i].Port = b.addr.Addr().As16(), byteorder.Net16(b.addr.Port())
		keys[i].Protocol = uint8(b.protocol)
	}
	if len(keys) == 0 {
		return nil
	}
	return batch.Write(p.Maps[iter.FillMapRevskImportBackends], keys, make([]uint32, len(keys)))
}

// readSockets reads what the programs say of the sockets.
func (p *programs) readSockets() error {
	cookies, sockets, err := batch.Read[uint64, iter.FillRevskImportSocket](p.Maps[iter.FillMapRevskImportSockets])
	if err != nil {
		return fmt.Errorf("reading which sockets were met: %w", err)
	}
	for i, cookie := range cookies {
		*p.sockets[cookie] = sockets[i]
	}
	return nil
}

// judge reads what has become of the entries. Of those that no program has visited it decides by where
// else their sockets were seen; open is how many they are.
func (p *programs) judge(dryRun bool) (open int, err error) {
	if err := p.readSockets(); err != nil {
		return 0, err
	}
	if len(p.entries) == 0 {
		return 0, nil
	}
	index, wire, err := batch.Read[uint32, iter.FillRevskImportEntry](p.Maps[iter.FillMapRevskImport])
	if err != nil {
		return 0, fmt.Errorf("reading what has become of entries: %w", err)
	}
	for i, w := range wire {
		e := p.entries[index[i]]
		seen := p.seen[e.key.Cookie]
		if s := p.sockets[e.key.Cookie]; s.Seen != 0 {
			seen = &sighting{family: s.Family, protocol: lbmap.Protocol(s.Protocol)}
		}
		if seen != nil {
			e.family, e.protocol = seen.family, seen.protocol
		}
		if !e.judge(iter.FillRevskFate(w.Fate)) {
			e.judgeUnvisited(seen, dryRun)
			if e.fate == FateUnknown && p.unreached != nil {
				e.why += ": " + p.unreached.Error()
			}
			open++
		}
	}
	return open, nil
}

// withoutEntry reads how many sockets are connected to backends and have no entry, by backend.
func (p *programs) withoutEntry() (map[backendKey]int, error) {
	keys, counts, err := batch.Read[iter.FillRevskBackendKey, uint32](p.Maps[iter.FillMapRevskImportBackends])
	if err != nil {
		return nil, fmt.Errorf("reading which sockets have no entry: %w", err)
	}
	all := make(map[backendKey]int)
	for i, k := range keys {
		if counts[i] > 0 {
			at := netip.AddrPortFrom(netip.AddrFrom16(k.Addr.Bytes).Unmap(), byteorder.Net16(k.Port))
			all[backendKey{at, lbmap.Protocol(k.Protocol)}] = int(counts[i])
		}
	}
	return all, nil
}
