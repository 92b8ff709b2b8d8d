// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// pickRevNat returns the reverse-NAT index for a service.
//
// Both families share one range of indexes, because cilium_lb_affinity_match
// does not tell them apart.
func (s *state) pickRevNat(svc Service) (uint16, error) {
	used := make(map[uint16]bool)
	for key, value := range s.services {
		if key.Frontend() == svc.Frontend {
			if key.Slot == 0 && svc.RevNat == 0 && value.RevNat != 0 {
				return value.RevNat, nil
			}
			continue
		}
		if svc.RevNat != 0 && value.RevNat == svc.RevNat {
			return 0, fmt.Errorf("reverse-NAT index %d belongs to %v: %w", svc.RevNat, key.Frontend(), ErrInUse)
		}
		used[value.RevNat] = true
	}
	if svc.RevNat != 0 {
		return svc.RevNat, nil
	}
	for _, entries := range s.revNat {
		for key := range entries {
			used[uint16(key)] = true
		}
	}
	for n := uint16(1); n != 0; n++ {
		if !used[n] {
			return n, nil
		}
	}
	return 0, fmt.Errorf("reverse-NAT indexes: %w", ErrFull)
}

// backendIdentity is what makes two backends the same one.
type backendIdentity struct {
	addrPort netip.AddrPort
	protocol Protocol
	cluster  uint16
}

func (b Backend) identity() backendIdentity {
	return backendIdentity{b.AddrPort, b.Protocol, b.ClusterID}
}

func (b Backend) value() BackendValue {
	return BackendValue{
		AddrPort: b.AddrPort, Protocol: b.Protocol, State: b.State, ClusterID: b.ClusterID, Zone: b.Zone,
	}
}

// pickIDs returns a copy of the backends of a service with their ids.
//
// Both families share one range of ids, because a slot and
// cilium_lb_affinity_match do not say which family an id is of.
func (s *state) pickIDs(svc Service) ([]Backend, error) {
	owner := make(map[uint32]backendIdentity)
	idOf := make(map[backendIdentity]uint32)
	for _, entries := range s.backends {
		for id, v := range entries {
			identity := backendIdentity{v.AddrPort, v.Protocol, v.ClusterID}
			owner[id] = identity
			if old, ok := idOf[identity]; !ok || id < old {
				idOf[identity] = id
			}
		}
	}
	// A slot may refer to a backend that is not there yet, because its control
	// plane is about to write it.
	referred := make(map[uint32]bool)
	for key, slot := range s.services {
		if key.Slot != 0 && key.Frontend() != svc.Frontend {
			referred[slot.BackendID()] = true
		}
	}

	backends := slices.Clone(svc.Backends)
	for _, b := range backends {
		if b.ID == 0 {
			continue
		}
		if other, ok := owner[b.ID]; ok && other != b.identity() {
			return nil, fmt.Errorf("backend id %d belongs to %v: %w", b.ID, other.addrPort, ErrInUse)
		}
		owner[b.ID] = b.identity()
	}
	next := uint32(1)
	for i := range backends {
		b := &backends[i]
		if b.ID != 0 {
			continue
		}
		if id, ok := idOf[b.identity()]; ok {
			b.ID = id
			continue
		}
		for owner[next] != (backendIdentity{}) || referred[next] {
			if next == math.MaxUint32 {
				return nil, fmt.Errorf("backend ids: %w", ErrFull)
			}
			next++
		}
		b.ID = next
		owner[next] = b.identity()
	}
	return backends, nil
}
