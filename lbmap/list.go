// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// Service is a service with its backends: what is spread over the entries of
// cilium_lb{4,6}_services_v2, _backends_v3 and _reverse_nat and of
// cilium_lb_affinity_match.
type Service struct {
	Frontend Frontend
	// RevNat is the reverse-NAT index, which identifies the service. 0 lets
	// [Writer.Upsert] keep the one that the service has, or else take the
	// lowest one that no service of either family has.
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
	// Backends are in the order of their slots. [Writer.Upsert] puts
	// those in front that get new connections: the active ones, or if there are
	// none, the terminating ones. It keeps the order otherwise.
	Backends []Backend
}

// Backend is a backend of a service.
type Backend struct {
	// ID is the key of the backend in cilium_lb{4,6}_backends_v3. 0 lets
	// [Writer.Upsert] take the one that is there for this address, port,
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
// have the expected layout, [ErrNoMap] if there is no map of services,
// [ErrClosed], or the error of the context.
func (t *Tables) Services(ctx context.Context) ([]Service, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	state, err := readState(ctx, t)
	if err != nil {
		return nil, err
	}
	var services []Service
	for f, r := range state.records {
		if r.master != nil {
			svc, err := state.service(f)
			if err != nil {
				return nil, err
			}
			services = append(services, svc)
		}
	}
	slices.SortFunc(services, func(a, b Service) int { return a.Frontend.Compare(b.Frontend) })
	return services, nil
}

// Service returns one service, in a time that does not depend on how many there
// are.
//
// Returns an error wrapping [ErrNotFound], or as [Tables.Services] does.
func (t *Tables) Service(ctx context.Context, f Frontend) (Service, error) {
	if err := t.check(); err != nil {
		return Service{}, err
	}
	if err := ctx.Err(); err != nil {
		return Service{}, err
	}
	own := t.family(f.is6())
	if own.services == nil {
		return Service{}, fmt.Errorf("reading %s: %w", own.servicesName, ErrNoMap)
	}
	var r record
	var master ServiceValue
	if ok, err := lookup(own.servicesName, own.services, serviceKey(f, 0), &master); err != nil {
		return Service{}, err
	} else if !ok {
		return Service{}, fmt.Errorf("service %v: %w", f, ErrNotFound)
	}
	r.master = &master
	for n := range min(r.inSight(), int(own.services.MaxEntries()), lastSlot) {
		var s slot
		var err error
		if s.there, err = lookup(own.servicesName, own.services, serviceKey(f, uint16(n+1)), &s.ServiceValue); err != nil {
			return Service{}, err
		}
		r.slots = append(r.slots, s)
	}
	var failed error
	svc := r.service(f, func(id uint32) (v BackendValue, ok bool) {
		for _, v6 := range []bool{f.is6(), !f.is6()} {
			in := t.family(v6)
			var err error
			if ok, err = lookup(in.backendsName, in.backends, id, &v); err != nil {
				failed = err
			}
			if ok || !master.Flags.Has(FlagNAT46x64) {
				break
			}
		}
		return v, ok
	})
	return svc, failed
}

// lookup reads an entry of a map that may be nil, and says whether there is one.
func lookup(name string, m *ebpf.Map, key, value any) (bool, error) {
	if m == nil {
		return false, nil
	}
	switch err := m.Lookup(key, value); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading %s: %w", name, err)
	}
	return true, nil
}

// Backends returns the entries of the backend maps that are there, in no order,
// whether a service has them or not.
//
// Returns an error as [Tables.Services] does.
func (t *Tables) Backends(ctx context.Context) ([]BackendValue, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	var backends []BackendValue
	for _, v6 := range []bool{false, true} {
		f := t.family(v6)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := readAll(f.backendsName, f.backends, func(_ backendID, v BackendValue) { backends = append(backends, v) })
		if err != nil {
			return nil, err
		}
	}
	return backends, nil
}

func serviceKey(f Frontend, slot uint16) ServiceKey {
	return ServiceKey{AddrPort: f.AddrPort, Slot: slot, Protocol: f.Protocol, Scope: f.Scope}
}
