// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Service is a service with its backends: what is spread over the entries of
// cilium_lb{4,6}_services_v2, _backends_v3 and _reverse_nat and of
// cilium_lb_affinity_match.
type Service struct {
	Frontend Frontend
	// RevNat is the reverse-NAT index, which identifies the service. 0 lets
	// [Tables.UpsertService] keep the one that the service has, or else take
	// the lowest one that no service of either family has.
	RevNat uint16
	// Flags are those of slot 0. A service with two scopes is two Services,
	// both with [FlagTwoScopes], that differ in Frontend.Scope.
	Flags ServiceFlags
	// AffinityTimeout is for how long after its last connection a client keeps
	// its backend: whole seconds up to [MaxAffinityTimeout]. Must be 0 with
	// [FlagL7LoadBalancer].
	AffinityTimeout time.Duration
	// Algorithm must be the default one with [FlagL7LoadBalancer].
	Algorithm Algorithm
	// L7ProxyPort is the port of the local L7 proxy. Must be 0 without
	// [FlagL7LoadBalancer].
	L7ProxyPort uint16
	// Backends are in the order of their slots. [Tables.UpsertService] puts
	// those in front that get new connections: the active ones, or if there are
	// none, the terminating ones. It keeps the order otherwise.
	Backends []Backend
}

// Backend is a backend of a service.
type Backend struct {
	// ID is the key of the backend in cilium_lb{4,6}_backends_v3. 0 lets
	// [Tables.UpsertService] take the one that is there for this address, port,
	// protocol and cluster, or else the lowest one that is free in both
	// families.
	ID uint32
	// AddrPort is of the family of the service, unless the service has
	// [FlagNAT46x64]. [Tables.Services] leaves it zero if there is no entry for
	// the ID.
	AddrPort netip.AddrPort
	Protocol Protocol
	// State is the same for all services with this backend.
	State BackendState
	// Quarantined says that the backend has failed a health check of this
	// service. It is always true for a State of [BackendQuarantined].
	Quarantined bool
	// ClusterID tells apart backends with the same address in connected
	// clusters. 0 is the own one.
	ClusterID uint16
	// Zone is the id of an availability zone. 0 is none.
	Zone uint8
}

// Services returns all services of the families whose maps are there, sorted by
// frontend. Slots without a service, or behind the last slot that the service
// counts, are not looked at.
//
// Returns an error wrapping [ErrPadding] or [ErrFamily] if an entry does not
// have the expected layout.
func (t *Tables) Services() ([]Service, error) {
	state, err := t.read()
	if err != nil {
		return nil, err
	}
	var services []Service
	for key := range state.services {
		if key.Slot == 0 {
			services = append(services, state.service(key))
		}
	}
	slices.SortFunc(services, func(a, b Service) int { return a.Frontend.Compare(b.Frontend) })
	return services, nil
}

// Service returns one service.
//
// Returns an error wrapping [ErrNotFound], or as [Tables.Services] does.
func (t *Tables) Service(f Frontend) (Service, error) {
	state, err := t.read()
	if err != nil {
		return Service{}, err
	}
	key := serviceKey(f, 0)
	if _, ok := state.services[key]; !ok {
		return Service{}, fmt.Errorf("service %v: %w", f, ErrNotFound)
	}
	return state.service(key), nil
}

// Backends returns the entries of the backend maps that are there, in no order, whether a service has
// them or not.
//
// Returns an error as [Tables.Services] does.
func (t *Tables) Backends() ([]BackendValue, error) {
	state, err := t.read()
	if err != nil {
		return nil, err
	}
	var backends []BackendValue
	for _, family := range state.backends {
		backends = slices.AppendSeq(backends, maps.Values(family))
	}
	return backends, nil
}

func serviceKey(f Frontend, slot uint16) ServiceKey {
	return ServiceKey{AddrPort: f.AddrPort, Slot: slot, Protocol: f.Protocol, Scope: f.Scope}
}

// state is the contents of the maps at one time.
type state struct {
	services map[ServiceKey]ServiceValue // both families
	lastSlot map[Frontend]uint16
	backends [2]map[uint32]BackendValue // IPv4, IPv6
	revNat   [2]map[RevNatKey]RevNatValue
}

// read returns what the maps that are there hold.
//
// Services come first: a backend is written before a slot refers to it, so that
// every slot read finds its backend, unless it is removed meanwhile.
func (t *Tables) read() (*state, error) {
	s := &state{
		services: make(map[ServiceKey]ServiceValue),
		lastSlot: make(map[Frontend]uint16),
	}
	for _, v6 := range []bool{false, true} {
		f := t.family(v6)
		services, err := readAll[ServiceKey, ServiceValue](f.servicesName, f.services)
		if err != nil {
			return nil, err
		}
		for key, value := range services {
			s.services[key] = value
			s.lastSlot[key.Frontend()] = max(s.lastSlot[key.Frontend()], key.Slot)
		}
	}
	for i, v6 := range []bool{false, true} {
		f := t.family(v6)
		var err error
		if s.backends[i], err = readAll[uint32, BackendValue](f.backendsName, f.backends); err != nil {
			return nil, err
		}
		if s.revNat[i], err = readAll[RevNatKey, RevNatValue](f.revNatName, f.revNat); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// service puts a service together from its entries.
func (s *state) service(master ServiceKey) Service {
	value := s.services[master]
	svc := Service{Frontend: master.Frontend(), RevNat: value.RevNat, Flags: value.Flags}
	if svc.Flags.Has(FlagL7LoadBalancer) {
		svc.L7ProxyPort = value.L7ProxyPort()
	} else {
		svc.AffinityTimeout = value.AffinityTimeout()
		svc.Algorithm = value.Algorithm()
	}
	slots := min(int(value.Count)+int(value.QCount), int(s.lastSlot[svc.Frontend]))
	for n := 1; n <= slots; n++ {
		slot, ok := s.services[serviceKey(svc.Frontend, uint16(n))]
		if !ok {
			continue
		}
		b := Backend{ID: slot.BackendID(), Quarantined: slot.Flags.Has(FlagQuarantined)}
		if v, _, ok := s.backend(svc, b.ID); ok {
			b.AddrPort, b.Protocol, b.State = v.AddrPort, v.Protocol, v.State
			b.ClusterID, b.Zone = v.ClusterID, v.Zone
		}
		svc.Backends = append(svc.Backends, b)
	}
	return svc
}

// backend finds a backend of a service, and says whether it is in the IPv6 map.
func (s *state) backend(svc Service, id uint32) (v BackendValue, v6, ok bool) {
	v6 = svc.Frontend.AddrPort.Addr().Is6()
	v, ok = s.backends[index(v6)][id]
	if !ok && svc.Flags.Has(FlagNAT46x64) {
		v6 = !v6
		v, ok = s.backends[index(v6)][id]
	}
	return v, v6, ok
}

// index is where the arrays of a state have the family.
func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}
