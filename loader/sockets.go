// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// What sockets hold is asked of the sockets, and what the hash holds of the hash: counters also count what
// nobody can reach any more, and notes can be lost.

// looks is how often sockets and hash are compared before a difference counts: the hooks write one after
// the other, and sockets are closed meanwhile.
const looks = 3

// sockets lists the sockets that hold tuples.
func (dp *Datapath) sockets(ctx context.Context) ([]inspect.Socket, error) {
	if err := allowMaps(); err != nil {
		return nil, err
	}
	all, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{SkipOwners: true})
	return all, describe(err)
}

// checkStorageEmpty returns an error wrapping ErrUnsafeMode if sockets hold tuples.
func (dp *Datapath) checkStorageEmpty(ctx context.Context) error {
	all, err := dp.sockets(ctx)
	if err != nil {
		return err
	}
	held := 0
	for i := range all {
		held += len(tuples(&all[i]))
	}
	if held > 0 {
		return fmt.Errorf("%w: %d tuples are on sockets only", ErrUnsafeMode, held)
	}
	return nil
}

// tuples are those that a socket holds, in the order in which they were written of one peer: the hash has one
// entry for it.
func tuples(s *inspect.Socket) []revnat.Tuple {
	var all []revnat.Tuple
	for _, t := range []*revnat.Tuple{s.Former, s.Conn} {
		if t != nil {
			all = append(all, *t)
		}
	}
	return append(all, s.Peers...)
}

// checkHash returns an error wrapping ErrHashIncomplete if sockets hold what the hash lacks. With exactly,
// the hash must say the same of each; else another service for the same peer will do, as where
// programs have written that keep the hash only.
func (dp *Datapath) checkHash(ctx context.Context, exactly bool) error {
	var lacking map[lbmap.ReverseSKKey]lbmap.ReverseSKValue
	for range looks {
		all, err := dp.sockets(ctx)
		if err != nil {
			return err
		}
		now, err := dp.lackedByHash(hashEntries(all), exactly)
		if err != nil {
			return err
		}
		if lacking != nil {
			for key, value := range now {
				if before, ok := lacking[key]; !ok || before != value {
					delete(now, key)
				}
			}
		}
		if lacking = now; len(lacking) == 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: %d of them", ErrHashIncomplete, len(lacking))
}

// refill puts back into the hash what it lacks of what sockets hold: it may have evicted that. What differs is left to
// [Datapath.checkHash].
func (dp *Datapath) refill(ctx context.Context) error {
	all, err := dp.sockets(ctx)
	if err != nil {
		return err
	}
	lacking, err := dp.lackedByHash(hashEntries(all), false)
	if err != nil {
		return err
	}
	dp.dryFilled = make(map[lbmap.ReverseSKKey]bool)
	for key, value := range lacking {
		m := dp.hashOf(key)
		if key.Cookie == 0 || m == nil {
			continue // nobody would find it by that
		}
		if dp.opts.dryRun {
			dp.dryFilled[key] = true
			continue
		}
		if err := m.Update(key, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("writing the hash: %w", err)
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	// What was closed meanwhile would leave an entry.
	if all, err = dp.sockets(ctx); err != nil {
		return err
	}
	held := hashEntries(all)
	for key := range lacking {
		m := dp.hashOf(key)
		if _, ok := held[key]; ok || m == nil || dp.opts.dryRun {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("deleting from the hash: %w", err)
		}
	}
	return nil
}

// hashOf is the map of the hash that an entry belongs to; nil if it is not there.
func (dp *Datapath) hashOf(key lbmap.ReverseSKKey) *ebpf.Map {
	if key.Backend.Addr().Is4() {
		return dp.maps[mapReverse4]
	}
	return dp.maps[mapReverse6]
}

// hashEntries are what the hash has to say of what sockets hold.
func hashEntries(sockets []inspect.Socket) map[lbmap.ReverseSKKey]lbmap.ReverseSKValue {
	entries := make(map[lbmap.ReverseSKKey]lbmap.ReverseSKValue)
	for i := range sockets {
		s := &sockets[i]
		for _, t := range tuples(s) {
			entries[lbmap.ReverseSKKey{Cookie: s.Cookie, Backend: t.Peer}] = lbmap.ReverseSKValue{Service: t.Service, RevNat: t.RevNATIndex}
		}
	}
	return entries
}

func (dp *Datapath) lackedByHash(entries map[lbmap.ReverseSKKey]lbmap.ReverseSKValue, exactly bool) (map[lbmap.ReverseSKKey]lbmap.ReverseSKValue, error) {
	lacking := make(map[lbmap.ReverseSKKey]lbmap.ReverseSKValue)
	for key, value := range entries {
		var now lbmap.ReverseSKValue
		err := ebpf.ErrKeyNotExist
		if m := dp.hashOf(key); m != nil {
			err = m.Lookup(key, &now)
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist) && dp.dryFilled[key]:
		case errors.Is(err, ebpf.ErrKeyNotExist), err == nil && exactly && now != value:
			lacking[key] = value
		case err != nil:
			return nil, fmt.Errorf("looking into the hash: %w", err)
		}
	}
	return lacking, nil
}
