// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// plan is a change of the maps, made in their state in memory. It keeps the former state of what it changes, to
// find out which entries to write, and to revert the change.
type plan struct {
	*state
	tables *Tables

	records  map[Frontend]*record
	backends map[backendKey]*BackendValue
	revNats  map[revNatKey]netip.AddrPort
	matches  map[AffinityMatchKey]bool
	taken    []uint32 // ids
	indexes  []uint16
	dropped  []droppedBackend
	// whole: the plan covers everything in the maps, not single services.
	whole bool
}

// droppedBackend is a backend that a service had.
type droppedBackend struct {
	v6    bool // the service
	flags ServiceFlags
	id    uint32
}

func newPlan(s *state, t *Tables) *plan {
	return &plan{
		state: s, tables: t,
		records:  make(map[Frontend]*record),
		backends: make(map[backendKey]*BackendValue),
		revNats:  make(map[revNatKey]netip.AddrPort),
		matches:  make(map[AffinityMatchKey]bool),
	}
}

func (p *plan) setRecord(f Frontend, r *record) {
	if _, ok := p.records[f]; !ok {
		p.records[f] = p.state.records[f]
	}
	p.state.setRecord(f, r)
}

// before returns the entries that a service has in the maps.
func (p *plan) before(f Frontend) *record {
	if r, ok := p.records[f]; ok {
		return r
	}
	return p.state.records[f]
}

func (p *plan) setBackend(key backendKey, v *BackendValue) {
	old, there := p.state.backends[key]
	if there && v != nil && old == *v {
		return
	}
	if _, ok := p.backends[key]; !ok {
		p.backends[key] = nil
		if there {
			p.backends[key] = &old
		}
	}
	p.state.setBackend(key, v)
}

func (p *plan) setRevNat(key revNatKey, addr netip.AddrPort) {
	if p.tables.family(key.v6).revNat == nil {
		return
	}
	old := p.state.revNats[key]
	if old == addr {
		return
	}
	if _, ok := p.revNats[key]; !ok {
		p.revNats[key] = old
	}
	p.state.setRevNat(key, addr)
}

func (p *plan) setMatch(key AffinityMatchKey, there bool) {
	if p.tables.AffinityMatch == nil {
		return
	}
	if _, ok := p.matches[key]; !ok {
		p.matches[key] = p.state.matches[key.RevNat][key.BackendID]
	}
	p.state.setMatch(key, there)
}

// revert undoes the plan in the state.
func (p *plan) revert() {
	for f, r := range p.records {
		p.state.setRecord(f, r)
	}
	for key, v := range p.backends {
		p.state.setBackend(key, v)
	}
	for key, addr := range p.revNats {
		p.state.setRevNat(key, addr)
	}
	for key, there := range p.matches {
		p.state.setMatch(key, there)
	}
	p.release()
}

// release frees numbers that are no longer used. It runs at the end of the plan, so that no backend gets the id of
// another one that the hooks may still find.
func (p *plan) release() {
	releaseID := func(id uint32) {
		if !p.idInUse(id) {
			p.freeIDs.release(id)
		}
	}
	releaseIndex := func(index uint16) {
		if !p.indexInUse(uint32(index)) {
			p.freeIndexes.release(uint32(index))
		}
	}
	for _, id := range p.taken {
		releaseID(id)
	}
	for key := range p.backends {
		releaseID(key.id)
	}
	for _, index := range p.indexes {
		releaseIndex(index)
	}
	for key := range p.revNats {
		releaseIndex(key.index)
	}
	for _, r := range p.records {
		if r == nil {
			continue
		}
		releaseIndex(r.index())
		for _, slot := range r.slots {
			if slot.there {
				releaseID(slot.BackendID())
			}
		}
	}
}

// upsert plans a new or changed service, and returns the new one.
func (p *plan) upsert(s Service) (Service, error) {
	master, err := s.check()
	if err != nil {
		return s, err
	}
	own := p.tables.family(s.Frontend.is6())
	if own.services == nil {
		return s, fmt.Errorf("writing %s: %w", own.servicesName, ErrNoMap)
	}
	old := p.before(s.Frontend)
	p.drop(s.Frontend)
	if s.RevNat, err = p.pickRevNat(s, old); err != nil {
		return s, err
	}
	var selected int
	s.Backends, selected = orderBackends(s.Backends)
	if err := p.pickIDs(s.Backends); err != nil {
		return s, err
	}

	master.RevNat = s.RevNat
	master.Count = uint16(selected)
	master.QCount = uint16(len(s.Backends) - selected)
	now := &record{master: &master}
	for _, b := range s.Backends {
		value := ServiceValue{RevNat: s.RevNat, Flags: s.Flags &^ notInSlots}
		if b.Quarantined {
			value.Flags |= FlagQuarantined
		}
		value.SetBackendID(b.ID)
		now.slots = append(now.slots, slot{value, true})
	}
	p.setRecord(s.Frontend, now)

	if old != nil && old.index() != s.RevNat {
		p.dropIndex(s.Frontend, old.index())
	}
	for index := p.leftIndex(s.Frontend); index != 0; index = p.leftIndex(s.Frontend) {
		p.dropIndex(s.Frontend, index)
	}
	p.setRevNat(revNatKey{s.Frontend.is6(), s.RevNat}, s.Frontend.AddrPort)
	p.setMatches(s, selected, now)
	return s, nil
}

// delete plans the removal of a service, and of what an earlier call for it has left behind. It returns
// an error wrapping ErrNotFound if neither exists.
func (p *plan) delete(f Frontend) error {
	if err := checkAddr(f.AddrPort.Addr()); err != nil {
		return err
	}
	own := p.tables.family(f.is6())
	if own.services == nil {
		return fmt.Errorf("writing %s: %w", own.servicesName, ErrNoMap)
	}
	old := p.before(f)
	p.drop(f)
	index := uint16(0)
	if old != nil {
		index = old.index()
	} else if index = p.leftIndex(f); index == 0 {
		return ErrNotFound
	}
	p.dropIndex(f, index)
	return nil
}

// drop removes the entries of a service.
func (p *plan) drop(f Frontend) {
	old := p.state.records[f]
	if old == nil {
		return
	}
	flags := old.flags()
	for _, slot := range old.slots {
		if slot.there {
			p.dropped = append(p.dropped, droppedBackend{f.is6(), flags, slot.BackendID()})
		}
	}
	p.setRecord(f, nil)
}

// dropIndex removes what belongs to a reverse-NAT index that the service f had, unless another service has it
// too: of the same family for the reverse-NAT entry, of either for cilium_lb_affinity_match, which has no family.
func (p *plan) dropIndex(f Frontend, index uint16) {
	key := revNatKey{f.is6(), index}
	if p.indexUses[key] == 0 && p.state.revNats[key] == f.AddrPort {
		p.setRevNat(key, netip.AddrPort{})
	}
	if p.usesOf(index) > 0 {
		return
	}
	for id := range p.state.matches[index] {
		p.setMatch(AffinityMatchKey{id, index}, false)
	}
}

// setMatches sets which backends the clients of a service may keep: the active ones among the first selected.
func (p *plan) setMatches(s Service, selected int, now *record) {
	keep := make(map[uint32]bool)
	if s.Flags.Has(FlagAffinity) {
		for _, b := range s.Backends[:selected] {
			if b.State == BackendActive {
				keep[b.ID] = true
				p.setMatch(AffinityMatchKey{b.ID, s.RevNat}, true)
			}
		}
	}
	own := 1 + len(now.slots)
	if p.usesOf(s.RevNat) > own {
		return // another service has the index, and matches of its own
	}
	for id := range p.state.matches[s.RevNat] {
		if !keep[id] {
			p.setMatch(AffinityMatchKey{id, s.RevNat}, false)
		}
	}
}

// collect removes the backends to which no slot refers any more.
func (p *plan) collect() {
	for _, d := range p.dropped {
		if p.refs[d.id] > 0 {
			continue
		}
		if key, ok := p.findBackend(d.v6, d.flags, d.id); ok {
			p.setBackend(key, nil)
		}
	}
}

// pickRevNat returns the reverse-NAT index for a service, whose entries were old and are dropped.
//
// Both families share one range of indexes, because cilium_lb_affinity_match
// does not tell them apart.
func (p *plan) pickRevNat(s Service, old *record) (uint16, error) {
	if s.RevNat != 0 {
		if p.usesOf(s.RevNat) > 0 {
			return 0, fmt.Errorf("reverse-NAT index %d belongs to %v: %w", s.RevNat, p.ownerOf(s.RevNat), ErrInUse)
		}
		return s.RevNat, nil
	}
	if old != nil {
		index := old.index()
		if index != 0 && (old.master != nil || p.usesOf(index) == 0) {
			return index, nil
		}
	}
	if index := p.leftIndex(s.Frontend); index != 0 && p.usesOf(index) == 0 {
		return index, nil
	}
	index := p.freeIndexes.take(p.indexInUse)
	if index == 0 {
		return 0, fmt.Errorf("reverse-NAT indexes: %w", ErrFull)
	}
	p.indexes = append(p.indexes, uint16(index))
	return uint16(index), nil
}

// leftIndex returns the reverse-NAT index that an earlier call for a service has left behind, or 0.
func (p *plan) leftIndex(f Frontend) uint16 {
	for _, index := range p.addresses[f.AddrPort] {
		if p.indexUses[revNatKey{f.is6(), index}] == 0 {
			return index
		}
	}
	return 0
}

// pickIDs gives ids to the backends of a service, and writes down what the backends are.
//
// Both families share one range of ids, because a slot and
// cilium_lb_affinity_match do not say which family an id is of.
func (p *plan) pickIDs(backends []Backend) error {
	for _, given := range []bool{true, false} {
		for i := range backends {
			b := &backends[i]
			if given != (b.ID != 0) {
				continue
			}
			if err := p.pickID(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) pickID(b *Backend) error {
	v6 := b.AddrPort.Addr().Is6()
	in := p.tables.family(v6)
	if in.backends == nil {
		return fmt.Errorf("writing %s: %w", in.backendsName, ErrNoMap)
	}
	value := b.value()
	if ids := p.ids[value.identity()]; b.ID == 0 && len(ids) > 0 {
		b.ID = ids[0]
	}
	if b.ID == 0 {
		if b.ID = p.freeIDs.take(p.idInUse); b.ID == 0 {
			return fmt.Errorf("backend ids: %w", ErrFull)
		}
		p.taken = append(p.taken, b.ID)
	}
	for _, other := range []bool{false, true} {
		v, ok := p.state.backends[backendKey{other, b.ID}]
		if ok && v.identity() != value.identity() {
			return fmt.Errorf("backend id %d belongs to %v: %w", b.ID, v.AddrPort, ErrInUse)
		}
	}
	p.setBackend(backendKey{v6, b.ID}, &value)
	return nil
}

func (b Backend) value() BackendValue {
	return BackendValue{
		AddrPort: b.AddrPort, Protocol: b.Protocol, State: b.State, ClusterID: b.ClusterID, Zone: b.Zone,
	}
}

// check refuses values that the maps cannot hold, and returns the value of slot
// 0 without the reverse-NAT index and the counts.
func (s Service) check() (ServiceValue, error) {
	value := ServiceValue{Flags: s.Flags}
	if err := checkAddr(s.Frontend.AddrPort.Addr()); err != nil {
		return value, err
	}
	if len(s.Backends) > math.MaxUint16 {
		return value, fmt.Errorf("%d backends, at most %d: %w", len(s.Backends), math.MaxUint16, ErrInvalid)
	}
	for _, b := range s.Backends {
		if err := checkAddr(b.AddrPort.Addr()); err != nil {
			return value, fmt.Errorf("backend: %w", err)
		}
		if b.AddrPort.Addr().Is4() != s.Frontend.AddrPort.Addr().Is4() && !s.Flags.Has(FlagNAT46x64) {
			return value, fmt.Errorf("backend %v: %w", b.AddrPort, ErrFamily)
		}
	}
	if b, ok := twice(s.Backends); ok {
		return value, fmt.Errorf("backend %v twice: %w", b.AddrPort, ErrInvalid)
	}

	if !s.Flags.Has(FlagL7LoadBalancer) {
		if s.L7ProxyPort != 0 {
			return value, fmt.Errorf("L7 proxy port without the flag l7-load-balancer: %w", ErrInvalid)
		}
		return value, value.SetAffinity(s.AffinityTimeout, s.Algorithm)
	}
	if s.AffinityTimeout != 0 || s.Algorithm != AlgorithmDefault {
		return value, fmt.Errorf("affinity timeout or algorithm with the flag l7-load-balancer: %w", ErrInvalid)
	}
	value.SetL7ProxyPort(s.L7ProxyPort)
	return value, nil
}

// twice returns a backend that is listed more than once.
func twice(backends []Backend) (Backend, bool) {
	if len(backends) < 2 {
		return Backend{}, false
	}
	seen := make(map[backendIdentity]bool, len(backends))
	for _, b := range backends {
		identity := b.value().identity()
		if seen[identity] {
			return b, true
		}
		seen[identity] = true
	}
	return Backend{}, false
}

// orderBackends returns a copy of the backends, with those that get new
// connections in front, and the number of these.
func orderBackends(backends []Backend) ([]Backend, int) {
	backends = slices.Clone(backends)
	var groups [3][]Backend
	for i := range backends {
		b := &backends[i]
		b.Quarantined = b.Quarantined || b.State == BackendQuarantined
		switch {
		case b.Quarantined:
			groups[2] = append(groups[2], *b)
		case b.State == BackendActive:
			groups[0] = append(groups[0], *b)
		case b.State == BackendTerminating:
			groups[1] = append(groups[1], *b)
		default:
			groups[2] = append(groups[2], *b)
		}
	}
	selected := len(groups[0])
	if selected == 0 {
		selected = len(groups[1])
	}
	return slices.Concat(groups[:]...), selected
}
