// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"encoding"
	"fmt"
	"maps"
	"slices"
)

// group is entries of one map that are written together, or removed together.
type group struct {
	phase phase
	name  string // of the map
	ops   []op
}

// op is one entry to write; without a new value, to remove. Without an old value the entry is new.
type op struct {
	key      bytes
	old, new bytes
}

// bytes holds any key or value.
type bytes struct {
	n    uint8
	data [ServiceKey6Size]byte
}

func (b *bytes) slice() []byte { return b.data[:b.n] }

// phase is the order in which the entries of all services of a plan are written.
//
// In this order the hooks never find a service without the slots that it counts, or a slot without its
// backend. If the process is killed at any point, slots tell what is left over: they are written before the
// backends, beyond the count of the service, and removed after them.
type phase uint8

const (
	phaseMastersGone phase = iota // from here on a service that is deleted is not found
	phaseSlotsGoneFirst
	phaseLog    // out of sight
	phaseHidden // out of sight
	phaseBackends
	phaseIndexes
	phaseSlots
	phaseMasters     // from here on the service is as it is wanted
	phaseMatchesGone // whose indexes can be told from the entries that are removed next
	phaseIndexesGone
	phaseBackendsGone
	phaseSlotsGone
)

// groups returns the entries to write, in that order. Without log it leaves out the entries that only help
// after a kill.
func (p *plan) groups(log bool) ([]group, error) {
	c := collector{groups: make(map[groupKey]*group)}
	for key, old := range p.backends {
		now, ok := p.state.backends[key]
		in := backendsName(key.v6)
		id := backendID(key.id)
		switch {
		case ok && old == nil:
			c.add(phaseBackends, in, id, nil, now)
		case ok && *old != now:
			c.add(phaseBackends, in, id, *old, now)
		case !ok && old != nil:
			c.add(phaseBackendsGone, in, id, *old, nil)
		}
	}
	for key, old := range p.revNats {
		now := p.state.revNats[key]
		in := revNatName(key.v6)
		index := RevNatKey(key.index)
		switch {
		case now == old:
		case !old.IsValid():
			c.add(phaseIndexes, in, index, nil, RevNatValue{now})
		case now.IsValid():
			c.add(phaseIndexes, in, index, RevNatValue{old}, RevNatValue{now})
		default:
			c.add(phaseIndexesGone, in, index, RevNatValue{old}, nil)
		}
	}
	for key, old := range p.matches {
		now := p.state.matches[key.RevNat][key.BackendID]
		switch {
		case now == old:
		case now:
			c.add(phaseIndexes, AffinityMatchMap, key, nil, presence{})
		default:
			c.add(phaseMatchesGone, AffinityMatchMap, key, presence{}, nil)
		}
	}
	for f, old := range p.records {
		p.serviceOps(&c, f, old, log)
	}
	var all []group
	for _, g := range c.groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b group) int {
		return cmp.Or(cmp.Compare(a.phase, b.phase), cmp.Compare(a.name, b.name))
	})
	return all, c.err
}

// serviceOps adds the entries to write in the map of services.
func (p *plan) serviceOps(c *collector, f Frontend, old *record, log bool) {
	now := p.state.records[f]
	var oldSlots, nowSlots []slot
	var oldMaster, nowMaster *ServiceValue
	if old != nil {
		oldSlots, oldMaster = old.slots, old.master
	}
	if now != nil {
		nowSlots, nowMaster = now.slots, now.master
	}

	name := servicesName(f.is6())
	gone := phaseSlotsGone
	if p.whole && now == nil {
		gone = phaseSlotsGoneFirst // makes room, and nothing is told from slots
	}
	last := max(len(oldSlots), len(nowSlots))
	for n := 1; n <= last; n++ {
		was, is := slotAt(oldSlots, n), slotAt(nowSlots, n)
		put := phaseHidden
		if n <= old.inSight() {
			put = phaseSlots
		}
		switch key := serviceKey(f, uint16(n)); {
		case was == is:
		case !is.there:
			c.add(gone, name, key, was.ServiceValue, nil)
		case was.there:
			c.add(put, name, key, was.ServiceValue, is.ServiceValue)
		default:
			c.add(put, name, key, nil, is.ServiceValue)
		}
	}
	switch key := serviceKey(f, 0); {
	case oldMaster == nil && nowMaster == nil:
	case nowMaster == nil:
		c.add(phaseMastersGone, name, key, *oldMaster, nil)
	case oldMaster == nil:
		c.add(phaseMasters, name, key, nil, *nowMaster)
	case *oldMaster != *nowMaster:
		c.add(phaseMasters, name, key, *oldMaster, *nowMaster)
	}

	if !log || p.whole {
		return
	}
	// Backends to which no slot refers in between get a slot beyond the count, so that a call after a kill
	// finds them.
	value := ServiceValue{RevNat: old.index(), Flags: (old.flags() | now.flags()) & FlagNAT46x64}
	if now != nil {
		value.RevNat = now.index()
	}
	for id := range p.unrecorded(old, oldSlots, nowSlots) {
		if last++; last > lastSlot {
			return
		}
		value.SetBackendID(id)
		key := serviceKey(f, uint16(last))
		c.add(phaseLog, name, key, nil, value)
		c.add(phaseSlotsGone, name, key, value, nil)
	}
}

const lastSlot = 1<<16 - 1

// unrecorded returns the backends that no slot refers to at some time between the first write and the
// last one.
func (p *plan) unrecorded(old *record, oldSlots, nowSlots []slot) map[uint32]bool {
	ids := make(map[uint32]bool)
	for n := 1; n <= len(nowSlots); n++ {
		was, is := slotAt(oldSlots, n), slotAt(nowSlots, n)
		if n <= old.inSight() && p.appears(is.BackendID()) {
			ids[is.BackendID()] = true
		}
		if was.there && was.BackendID() != is.BackendID() {
			ids[was.BackendID()] = true
		}
	}
	if len(ids) == 0 {
		return nil
	}
	others := make(map[uint32]int) // slots of other services
	for id := range ids {
		others[id] = p.refs[id]
	}
	for _, is := range nowSlots {
		others[is.BackendID()]--
	}
	for n := 1; n <= len(oldSlots); n++ {
		was := slotAt(oldSlots, n)
		if n > len(nowSlots) || was.BackendID() == slotAt(nowSlots, n).BackendID() {
			delete(ids, was.BackendID()) // this one stays until the end
		}
	}
	for id := range ids {
		if others[id] > 0 {
			delete(ids, id)
		}
	}
	return ids
}

// appears tells whether a backend is new.
func (p *plan) appears(id uint32) bool {
	for _, v6 := range []bool{false, true} {
		old, touched := p.backends[backendKey{v6, id}]
		if _, now := p.state.backends[backendKey{v6, id}]; touched && old == nil && now {
			return true
		}
	}
	return false
}

// slotAt returns slot n, which may be beyond the last one.
func slotAt(slots []slot, n int) slot {
	if n > len(slots) {
		return slot{}
	}
	return slots[n-1]
}

// collector encodes entries.
type collector struct {
	groups map[groupKey]*group
	err    error
}

type groupKey struct {
	phase phase
	name  string
}

func (c *collector) add(phase phase, name string, key, old, now encoding.BinaryMarshaler) {
	k := groupKey{phase, name}
	g := c.groups[k]
	if g == nil {
		g = &group{phase: phase, name: name}
		c.groups[k] = g
	}
	g.ops = append(g.ops, op{c.bytes(key), c.bytes(old), c.bytes(now)})
}

func (c *collector) bytes(v encoding.BinaryMarshaler) (b bytes) {
	if v == nil {
		return b
	}
	data, err := v.MarshalBinary()
	if err != nil && c.err == nil {
		c.err = err
	}
	b.n = uint8(copy(b.data[:], data))
	return b
}

// fit returns an error wrapping ErrFull if a map has too little room at any moment of the given changes.
func (p *plan) fit(groups []group) error {
	entries := maps.Clone(p.entries)
	for _, g := range groups {
		for i := range g.ops {
			entries[g.name] -= g.ops[i].growth() // which the state has already
		}
	}
	for _, g := range groups {
		grown := 0
		for i := range g.ops {
			grown += g.ops[i].growth()
		}
		entries[g.name] += grown
		if grown > 0 && entries[g.name] > int(p.tables.named(g.name).MaxEntries()) {
			return fmt.Errorf("writing %s: %w", g.name, ErrFull)
		}
	}
	return nil
}

// growth is the number of entries that the map gains.
func (o *op) growth() int {
	switch {
	case o.old.n == 0:
		return 1
	case o.new.n == 0:
		return -1
	}
	return 0
}
