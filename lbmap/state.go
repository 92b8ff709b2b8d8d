// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// state is the contents of the maps that services are kept in, with what it takes to change one of them
// without looking at the others.
type state struct {
	records  map[Frontend]*record
	backends map[backendKey]BackendValue
	revNats  map[revNatKey]netip.AddrPort
	matches  map[uint16]map[uint32]bool // backends by reverse-NAT index
	entries  map[string]int             // number of entries by name of the map

	ids       map[backendIdentity][]uint32 // by backend, sorted; mostly one
	addresses map[netip.AddrPort][]uint16  // reverse-NAT indexes that have the address, sorted; mostly one
	refs      map[uint32]int               // how many slots refer to a backend
	indexUses map[revNatKey]int            // how many entries of services of the family have a reverse-NAT index

	freeIDs, freeIndexes *allocator
}

// record is the entries of one service. It is not changed, but replaced.
type record struct {
	master *ServiceValue // slot 0; nil if it is missing
	slots  []slot        // slot n is at n-1
}

type slot struct {
	ServiceValue
	there bool
}

// backendKey and revNatKey are keys of the maps of both families.
type backendKey struct {
	v6 bool
	id uint32
}

type revNatKey struct {
	v6    bool
	index uint16
}

// backendIdentity is what makes two backends the same one.
type backendIdentity struct {
	addrPort netip.AddrPort
	protocol Protocol
	cluster  uint16
}

func (v BackendValue) identity() backendIdentity {
	return backendIdentity{v.AddrPort, v.Protocol, v.ClusterID}
}

func (f Frontend) is6() bool { return f.AddrPort.Addr().Is6() }

const (
	lastBackendID = 1<<32 - 1
	lastRevNat    = 1<<16 - 1
)

// readState returns what the maps that are there hold.
//
// Services come first: a backend is written before a slot that programs look at refers to it, so that
// every such slot finds its backend, unless it is removed meanwhile.
func readState(ctx context.Context, t *Tables) (*state, error) {
	s := &state{
		records:     make(map[Frontend]*record),
		backends:    make(map[backendKey]BackendValue),
		revNats:     make(map[revNatKey]netip.AddrPort),
		matches:     make(map[uint16]map[uint32]bool),
		entries:     make(map[string]int),
		ids:         make(map[backendIdentity][]uint32),
		addresses:   make(map[netip.AddrPort][]uint16),
		refs:        make(map[uint32]int),
		indexUses:   make(map[revNatKey]int),
		freeIDs:     newAllocator(lastBackendID),
		freeIndexes: newAllocator(lastRevNat),
	}
	for _, v6 := range []bool{false, true} {
		f := t.family(v6)
		if err := readAll(f.servicesName, f.services, s.addEntry); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	for f, r := range s.records {
		s.count(f, r, 1)
	}
	for _, v6 := range []bool{false, true} {
		f := t.family(v6)
		err := readAll(f.backendsName, f.backends, func(id backendID, v BackendValue) {
			s.setBackend(backendKey{v6, uint32(id)}, &v)
		})
		if err != nil {
			return nil, err
		}
		err = readAll(f.revNatName, f.revNat, func(index RevNatKey, v RevNatValue) {
			s.setRevNat(revNatKey{v6, uint16(index)}, v.AddrPort)
		})
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	err := readAll(AffinityMatchMap, t.AffinityMatch, func(match AffinityMatchKey, _ presence) {
		s.setMatch(match, true)
	})
	return s, err
}

func (s *state) addEntry(key ServiceKey, v ServiceValue) {
	r := s.records[key.Frontend()]
	if r == nil {
		r = &record{}
		s.records[key.Frontend()] = r
	}
	if key.Slot == 0 {
		r.master = &v
		return
	}
	if missing := int(key.Slot) - len(r.slots); missing > 0 {
		r.slots = append(r.slots, make([]slot, missing)...)
	}
	r.slots[key.Slot-1] = slot{v, true}
}

// setRecord sets the entries of a service; nil removes them.
func (s *state) setRecord(f Frontend, r *record) {
	if old := s.records[f]; old != nil {
		s.count(f, old, -1)
	}
	if r == nil {
		delete(s.records, f)
		return
	}
	s.records[f] = r
	s.count(f, r, 1)
}

// count adds or takes away what the entries of a service refer to.
func (s *state) count(f Frontend, r *record, n int) {
	name := servicesName(f.is6())
	if r.master != nil {
		s.entries[name] += n
		add(s.indexUses, revNatKey{f.is6(), r.master.RevNat}, n)
	}
	for _, slot := range r.slots {
		if slot.there {
			s.entries[name] += n
			add(s.indexUses, revNatKey{f.is6(), slot.RevNat}, n)
			add(s.refs, slot.BackendID(), n)
		}
	}
}

func add[K comparable](counts map[K]int, key K, n int) {
	if counts[key] += n; counts[key] == 0 {
		delete(counts, key)
	}
}

// remember and forget keep sorted numbers by key.
func remember[K comparable, N cmp.Ordered](all map[K][]N, key K, n N) {
	if i, found := slices.BinarySearch(all[key], n); !found {
		all[key] = slices.Insert(all[key], i, n)
	}
}

func forget[K comparable, N cmp.Ordered](all map[K][]N, key K, n N) {
	left := slices.DeleteFunc(all[key], func(m N) bool { return m == n })
	if all[key] = left; len(left) == 0 {
		delete(all, key)
	}
}

// setBackend sets a backend; nil removes it.
func (s *state) setBackend(key backendKey, v *BackendValue) {
	name := backendsName(key.v6)
	if old, ok := s.backends[key]; ok {
		s.entries[name]--
		delete(s.backends, key)
		forget(s.ids, old.identity(), key.id)
	}
	if v == nil {
		return
	}
	s.entries[name]++
	s.backends[key] = *v
	remember(s.ids, v.identity(), key.id)
}

// setRevNat sets a reverse-NAT entry; the zero address removes it.
func (s *state) setRevNat(key revNatKey, addr netip.AddrPort) {
	name := revNatName(key.v6)
	if old, ok := s.revNats[key]; ok {
		s.entries[name]--
		delete(s.revNats, key)
		forget(s.addresses, old, key.index)
	}
	if addr.IsValid() {
		s.entries[name]++
		s.revNats[key] = addr
		remember(s.addresses, addr, key.index)
	}
}

func (s *state) setMatch(key AffinityMatchKey, there bool) {
	backends := s.matches[key.RevNat]
	if backends[key.BackendID] == there {
		return
	}
	if !there {
		s.entries[AffinityMatchMap]--
		if delete(backends, key.BackendID); len(backends) == 0 {
			delete(s.matches, key.RevNat)
		}
		return
	}
	s.entries[AffinityMatchMap]++
	if backends == nil {
		backends = make(map[uint32]bool)
		s.matches[key.RevNat] = backends
	}
	backends[key.BackendID] = true
}

func (s *state) idInUse(id uint32) bool {
	if s.refs[id] > 0 {
		return true
	}
	for _, v6 := range []bool{false, true} {
		if _, ok := s.backends[backendKey{v6, id}]; ok {
			return true
		}
	}
	return false
}

// usesOf is how many entries of services of either family have a reverse-NAT index.
func (s *state) usesOf(index uint16) int {
	return s.indexUses[revNatKey{false, index}] + s.indexUses[revNatKey{true, index}]
}

func (s *state) indexInUse(index uint32) bool {
	if s.usesOf(uint16(index)) > 0 {
		return true
	}
	for _, v6 := range []bool{false, true} {
		if _, ok := s.revNats[revNatKey{v6, uint16(index)}]; ok {
			return true
		}
	}
	return false
}

// ownerOf finds a service that has a reverse-NAT index.
func (s *state) ownerOf(index uint16) Frontend {
	var owners []Frontend
	for f, r := range s.records {
		if r.index() == index {
			owners = append(owners, f)
		}
	}
	if owners == nil {
		return Frontend{}
	}
	return slices.MinFunc(owners, Frontend.Compare)
}

// service puts a service together from its entries.
func (s *state) service(f Frontend) (Service, error) {
	r := s.records[f]
	if r == nil || r.master == nil {
		return Service{}, fmt.Errorf("service %v: %w", f, ErrNotFound)
	}
	return r.service(f, func(id uint32) (v BackendValue, ok bool) {
		key, ok := s.findBackend(f.is6(), r.master.Flags, id)
		return s.backends[key], ok
	}), nil
}

// findBackend returns in which family the backend of a service is.
func (s *state) findBackend(v6 bool, flags ServiceFlags, id uint32) (backendKey, bool) {
	_, ok := s.backends[backendKey{v6, id}]
	if !ok && flags.Has(FlagNAT46x64) {
		v6 = !v6
		_, ok = s.backends[backendKey{v6, id}]
	}
	return backendKey{v6, id}, ok
}

// index is the reverse-NAT index of the service.
func (r *record) index() uint16 {
	if r == nil {
		return 0
	}
	if r.master != nil {
		return r.master.RevNat
	}
	for _, slot := range r.slots {
		if slot.there {
			return slot.RevNat
		}
	}
	return 0
}

// flags are all that the entries have.
func (r *record) flags() (flags ServiceFlags) {
	if r == nil {
		return 0
	}
	if r.master != nil {
		flags = r.master.Flags
	}
	for _, slot := range r.slots {
		flags |= slot.Flags
	}
	return flags
}

// inSight is the number of slots that programs and readers look at.
func (r *record) inSight() int {
	if r == nil || r.master == nil {
		return 0
	}
	return int(r.master.Count) + int(r.master.QCount)
}

// service needs a record with slot 0.
func (r *record) service(f Frontend, backend func(id uint32) (BackendValue, bool)) Service {
	svc := Service{Frontend: f, RevNat: r.master.RevNat, Flags: r.master.Flags}
	if svc.Flags.Has(FlagL7LoadBalancer) {
		svc.L7ProxyPort = r.master.L7ProxyPort()
	} else {
		svc.AffinityTimeout = r.master.AffinityTimeout()
		svc.Algorithm = r.master.Algorithm()
	}
	for _, slot := range r.slots[:min(r.inSight(), len(r.slots))] {
		if !slot.there {
			continue
		}
		b := Backend{ID: slot.BackendID(), Quarantined: slot.Flags.Has(FlagQuarantined)}
		if v, ok := backend(b.ID); ok {
			b.AddrPort, b.Protocol, b.State = v.AddrPort, v.Protocol, v.State
			b.ClusterID, b.Zone = v.ClusterID, v.Zone
		}
		svc.Backends = append(svc.Backends, b)
	}
	return svc
}

func (r *record) equal(o *record) bool {
	if r == nil || o == nil {
		return r == o
	}
	sameMaster := r.master == o.master || r.master != nil && o.master != nil && *r.master == *o.master
	return sameMaster && slices.Equal(r.slots, o.slots)
}
