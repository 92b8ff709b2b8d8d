// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// UpsertService writes a service, new or changed, and returns it as written:
// with its reverse-NAT index, the ids of its backends, and these in the order of
// their slots.
//
// Programs that run meanwhile find every slot that they count on, and every
// backend that a slot refers to: backends are written first, then the slots,
// then slot 0 with the number of slots, and only then is removed what the
// service no longer uses. A backend that another slot of any service refers to
// stays. With [FlagAffinity], clients are allowed to keep the backends that get
// new connections (cilium_lb_affinity_match), if that map is there; the service
// is entered in cilium_lb{4,6}_reverse_nat likewise.
//
// It reads the maps of services and backends from end to end, to find what is
// free and what is no longer used.
//
// Returns an error wrapping [ErrFamily] for a service or backend address,
// [ErrInvalid] for other values that the maps cannot hold, [ErrInUse] for a
// RevNat or an ID that belongs to another one, [ErrNoMap] or [ErrFull]. After an
// error the maps are as before.
func (t *Tables) UpsertService(s Service) (Service, error) {
	var c changes
	written, err := t.upsert(&c, s)
	if err != nil {
		return Service{}, errors.Join(fmt.Errorf("writing service %v: %w", s.Frontend, err), c.undo())
	}
	return written, nil
}

// DeleteService removes a service, and those of its backends that no slot of
// another service refers to. Slot 0 goes first, so that programs that run
// meanwhile find either the whole service or none.
//
// Returns an error wrapping [ErrNotFound] or [ErrNoMap]. After an error the maps
// are as before.
func (t *Tables) DeleteService(f Frontend) error {
	var c changes
	if err := t.delete(&c, f); err != nil {
		return errors.Join(fmt.Errorf("deleting service %v: %w", f, err), c.undo())
	}
	return nil
}

func (t *Tables) upsert(c *changes, s Service) (Service, error) {
	master, err := s.check()
	if err != nil {
		return s, err
	}
	before, err := t.read()
	if err != nil {
		return s, err
	}
	if s.RevNat, err = before.pickRevNat(s); err != nil {
		return s, err
	}
	var selected int
	s.Backends, selected = orderBackends(s.Backends)
	if s.Backends, err = before.pickIDs(s); err != nil {
		return s, err
	}

	for _, b := range s.Backends {
		f := t.family(b.AddrPort.Addr().Is6())
		if err := c.put(f.backendsName, f.backends, b.ID, b.value()); err != nil {
			return s, err
		}
	}
	own := t.family(s.Frontend.AddrPort.Addr().Is6())
	if own.revNat != nil {
		value := RevNatValue{s.Frontend.AddrPort}
		if err := c.put(own.revNatName, own.revNat, RevNatKey(s.RevNat), value); err != nil {
			return s, err
		}
	}
	keep := s.matches(selected)
	if t.AffinityMatch != nil {
		for _, match := range keep {
			if err := c.put(AffinityMatchMap, t.AffinityMatch, match, present); err != nil {
				return s, err
			}
		}
	}

	for i, b := range s.Backends {
		value := ServiceValue{RevNat: s.RevNat, Flags: s.Flags &^ notInSlots}
		if b.Quarantined {
			value.Flags |= FlagQuarantined
		}
		value.SetBackendID(b.ID)
		if err := c.put(own.servicesName, own.services, serviceKey(s.Frontend, uint16(i+1)), value); err != nil {
			return s, err
		}
	}
	master.RevNat = s.RevNat
	master.Count = uint16(selected)
	master.QCount = uint16(len(s.Backends) - selected)
	if err := c.put(own.servicesName, own.services, serviceKey(s.Frontend, 0), master); err != nil {
		return s, err
	}

	return s, t.removeUnused(c, before, s.Frontend, &s, keep)
}

func (t *Tables) delete(c *changes, f Frontend) error {
	if err := checkAddr(f.AddrPort.Addr()); err != nil {
		return err
	}
	own := t.family(f.AddrPort.Addr().Is6())
	if own.services == nil {
		return fmt.Errorf("writing %s: %w", own.servicesName, ErrNoMap)
	}
	before, err := t.read()
	if err != nil {
		return err
	}
	if _, ok := before.services[serviceKey(f, 0)]; !ok {
		return ErrNotFound
	}
	if err := c.remove(own.servicesName, own.services, serviceKey(f, 0)); err != nil {
		return err
	}
	return t.removeUnused(c, before, f, nil, nil)
}

// removeUnused removes what the service f had before and does not have any
// more: slots from the last one down, the reverse-NAT entry, affinity matches
// and backends. now is the service as it is now, nil if it is gone; its affinity
// matches are keep.
func (t *Tables) removeUnused(c *changes, before *state, f Frontend, now *Service, keep []AffinityMatchKey) error {
	own := t.family(f.AddrPort.Addr().Is6())
	old, existed := before.services[serviceKey(f, 0)]
	used := make(map[uint32]bool)
	slots := 0
	if now != nil {
		slots = len(now.Backends)
		for _, b := range now.Backends {
			used[b.ID] = true
		}
	}

	var ids []uint32
	for n := int(before.lastSlot[f]); n > 0; n-- {
		slot, ok := before.services[serviceKey(f, uint16(n))]
		if !ok {
			continue
		}
		ids = append(ids, slot.BackendID())
		if n > slots {
			if err := c.remove(own.servicesName, own.services, serviceKey(f, uint16(n))); err != nil {
				return err
			}
		}
	}

	if existed && (now == nil || now.RevNat != old.RevNat) {
		// Another service may have taken the index over.
		i := index(f.AddrPort.Addr().Is6())
		if before.revNat[i][RevNatKey(old.RevNat)].AddrPort == f.AddrPort {
			if err := c.remove(own.revNatName, own.revNat, RevNatKey(old.RevNat)); err != nil {
				return err
			}
		}
	}

	for key, slot := range before.services {
		if key.Slot != 0 && key.Frontend() != f {
			used[slot.BackendID()] = true
		}
	}
	svc := Service{Frontend: f, Flags: old.Flags}
	for _, id := range ids {
		match := AffinityMatchKey{BackendID: id, RevNat: old.RevNat}
		if existed && !slices.Contains(keep, match) {
			if err := c.remove(AffinityMatchMap, t.AffinityMatch, match); err != nil {
				return err
			}
		}
		if used[id] {
			continue
		}
		if _, v6, ok := before.backend(svc, id); ok {
			in := t.family(v6)
			if err := c.remove(in.backendsName, in.backends, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// check refuses what the maps cannot hold, and returns what slot 0 is to hold
// apart from the reverse-NAT index and the counts.
func (s Service) check() (ServiceValue, error) {
	value := ServiceValue{Flags: s.Flags}
	if err := checkAddr(s.Frontend.AddrPort.Addr()); err != nil {
		return value, err
	}
	if len(s.Backends) > math.MaxUint16 {
		return value, fmt.Errorf("%d backends, at most %d: %w", len(s.Backends), math.MaxUint16, ErrInvalid)
	}
	seen := make(map[backendIdentity]bool, len(s.Backends))
	for _, b := range s.Backends {
		if err := checkAddr(b.AddrPort.Addr()); err != nil {
			return value, fmt.Errorf("backend: %w", err)
		}
		if b.AddrPort.Addr().Is4() != s.Frontend.AddrPort.Addr().Is4() && !s.Flags.Has(FlagNAT46x64) {
			return value, fmt.Errorf("backend %v: %w", b.AddrPort, ErrFamily)
		}
		if seen[b.identity()] {
			return value, fmt.Errorf("backend %v twice: %w", b.AddrPort, ErrInvalid)
		}
		seen[b.identity()] = true
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

// matches returns the affinity matches that the service is to have: its first
// selected backends, as far as they are active.
func (s Service) matches(selected int) []AffinityMatchKey {
	if !s.Flags.Has(FlagAffinity) {
		return nil
	}
	var matches []AffinityMatchKey
	for _, b := range s.Backends[:selected] {
		if b.State == BackendActive {
			matches = append(matches, AffinityMatchKey{BackendID: b.ID, RevNat: s.RevNat})
		}
	}
	return matches
}

// orderBackends returns a copy of the backends with those in front that get new
// connections, and how many these are.
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
