// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Action is what a call of a [Writer] does to a service.
type Action string

// The actions. ActionKeep: the service exists already as wanted.
const (
	ActionAdd     Action = "add"
	ActionReplace Action = "replace"
	ActionKeep    Action = "keep"
	ActionDelete  Action = "delete"
)

// Change is what a call has done, or would do, to a service.
type Change struct {
	Action Action
	// Service is the service as it is written: with its reverse-NAT index, the
	// ids of its backends, and these in the order of their slots. After
	// ActionDelete it is the service as it was.
	Service Service
}

// Upsert writes a service, new or changed.
//
// With [FlagAffinity], clients are allowed to keep the backends that get new
// connections (cilium_lb_affinity_match), if that map exists. The service also
// gets an entry in cilium_lb{4,6}_reverse_nat, if that exists. Backends to which
// no slot of any service refers any more are removed.
//
// Returns an error wrapping [ErrFamily] for a service or backend address,
// [ErrInvalid] for other values that the maps cannot hold, [ErrInUse] for a
// RevNat or an ID that belongs to another one, [ErrNoMap], [ErrFull],
// [ErrConflict], [ErrClosed], or the error of the context.
func (w *Writer) Upsert(ctx context.Context, s Service) (Change, error) {
	return w.upsert(ctx, true, s)
}

// PlanUpsert returns what [Writer.Upsert] would do and return, and writes
// nothing.
func (w *Writer) PlanUpsert(ctx context.Context, s Service) (Change, error) {
	return w.upsert(ctx, false, s)
}

func (w *Writer) upsert(ctx context.Context, write bool, s Service) (Change, error) {
	var c Change
	changes, err := w.do(ctx, write, func(p *plan) (err error) {
		c.Action = ActionAdd
		if old := p.before(s.Frontend); old != nil && old.master != nil {
			c.Action = ActionReplace
		}
		c.Service, err = p.upsert(s)
		return err
	})
	if err != nil {
		return Change{}, fmt.Errorf("writing service %v: %w", s.Frontend, err)
	}
	if !changes {
		c.Action = ActionKeep
	}
	return c, nil
}

// Delete removes a service, and those of its backends that no slot of another
// service refers to. Slot 0 is removed first, so that the hooks find either the
// whole service or none.
//
// Returns an error wrapping [ErrNotFound] if there is no such service; it still
// removes what an earlier call has left of one. Other errors are those of
// [Writer.Upsert].
func (w *Writer) Delete(ctx context.Context, f Frontend) (Change, error) {
	return w.delete(ctx, true, f)
}

// PlanDelete returns what [Writer.Delete] would do and return, and writes
// nothing.
func (w *Writer) PlanDelete(ctx context.Context, f Frontend) (Change, error) {
	return w.delete(ctx, false, f)
}

func (w *Writer) delete(ctx context.Context, write bool, f Frontend) (Change, error) {
	c := Change{Action: ActionDelete}
	var missing error
	_, err := w.do(ctx, write, func(p *plan) error {
		c.Service, missing = p.service(f)
		return p.delete(f)
	})
	if err == nil {
		err = missing
	}
	if err != nil {
		return Change{}, fmt.Errorf("deleting service %v: %w", f, err)
	}
	return c, nil
}

// Report is what [Writer.Sync] has done, or would do.
type Report struct {
	// Services are the wanted services, in the same order, as they are written.
	Services []Service
	// The numbers of services that were added, had another entry in the map of
	// services, were as they are wanted, and were deleted.
	Added, Replaced, Kept, Deleted int
}

// Sync writes the wanted services and deletes all others. It does not write
// entries that exist already as wanted. A backend or service that stays keeps its
// id or reverse-NAT index, and the hooks never find it missing. Sync removes
// backends and reverse-NAT entries that no service has, whoever has written
// them: use it only for maps that belong to the caller alone.
//
// Returns an error as [Writer.Upsert] does, and one wrapping [ErrInvalid] if two
// services have the same Frontend, or the same backend in two states. After an
// error the maps are as before.
func (w *Writer) Sync(ctx context.Context, wanted []Service) (Report, error) {
	return w.sync(ctx, true, wanted)
}

// PlanSync returns what [Writer.Sync] would do and return, and writes nothing.
func (w *Writer) PlanSync(ctx context.Context, wanted []Service) (Report, error) {
	return w.sync(ctx, false, wanted)
}

func (w *Writer) sync(ctx context.Context, write bool, wanted []Service) (Report, error) {
	var r Report
	_, err := w.do(ctx, write, func(p *plan) (err error) {
		r, err = p.sync(wanted)
		return err
	})
	if err != nil {
		return Report{}, fmt.Errorf("writing all services: %w", err)
	}
	return r, nil
}

// sync plans all services.
func (p *plan) sync(wanted []Service) (Report, error) {
	p.whole = true
	r := Report{Services: make([]Service, len(wanted))}
	keep := make(map[Frontend]bool, len(wanted))
	for i := range wanted {
		f := wanted[i].Frontend
		if keep[f] {
			return r, fmt.Errorf("service %v twice: %w", f, ErrInvalid)
		}
		keep[f] = true
	}
	for f, old := range p.state.records {
		if !keep[f] {
			p.drop(f)
			if old.master != nil {
				r.Deleted++
			}
		}
	}
	// Services that ask for an index or id come first: the others get what is left.
	order := make([]int, 0, len(wanted))
	for _, asks := range []bool{true, false} {
		for i := range wanted {
			if wanted[i].asks() == asks {
				order = append(order, i)
			}
		}
	}
	for _, i := range order {
		if index := wanted[i].RevNat; index != 0 && p.state.records[wanted[i].Frontend] != nil {
			p.drop(wanted[i].Frontend)
		}
	}
	values := make(map[uint32]BackendValue)
	for _, i := range order {
		s, err := p.upsert(wanted[i])
		if err != nil {
			return r, fmt.Errorf("service %v: %w", wanted[i].Frontend, err)
		}
		for _, b := range s.Backends {
			if other, ok := values[b.ID]; ok && other != b.value() {
				return r, fmt.Errorf("service %v: backend %v has another state or zone in another service: %w",
					s.Frontend, b.AddrPort, ErrInvalid)
			}
			values[b.ID] = b.value()
		}
		r.Services[i] = s
		switch old := p.before(s.Frontend); {
		case old == nil || old.master == nil:
			r.Added++
		case old.equal(p.state.records[s.Frontend]):
			r.Kept++
		default:
			r.Replaced++
		}
	}
	p.sweep()
	return r, nil
}

func (s *Service) asks() bool {
	return s.RevNat != 0 || slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.ID != 0 })
}

// sweep removes everything that belongs to no service.
func (p *plan) sweep() {
	for key := range p.state.backends {
		if p.refs[key.id] == 0 {
			p.setBackend(key, nil)
		}
	}
	for key := range p.state.revNats {
		if p.indexUses[key] == 0 {
			p.setRevNat(key, netip.AddrPort{})
		}
	}
	for index, backends := range p.state.matches {
		if p.usesOf(index) > 0 {
			continue
		}
		for id := range backends {
			p.setMatch(AffinityMatchKey{id, index}, false)
		}
	}
}
