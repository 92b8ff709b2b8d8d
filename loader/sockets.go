// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/maplayout"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// What sockets and hash hold is read from them, not from counters, which also count what no socket can reach
// any more.

// looks is how often sockets and hash are compared before a difference counts. A single look may find
// differences that are none: the hooks write one after the other, and sockets are closed meanwhile.
const looks = 3

// sockets lists the sockets that hold tuples.
func (dp *Datapath) sockets(ctx context.Context) ([]inspect.Socket, error) {
	if err := allowMaps(); err != nil {
		return nil, err
	}
	all, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{SkipOwners: true})
	return all, describe(err)
}

// held is how many tuples sockets hold.
func (dp *Datapath) held(ctx context.Context) (n int, err error) {
	if err := allowMaps(); err != nil {
		return 0, err
	}
	r, err := inspect.Open(dp.InspectMaps(), inspect.Options{SkipOwners: true, Reuse: true})
	if err != nil {
		return 0, describe(err)
	}
	defer r.Close()
	for s, err := range r.Sockets(ctx, inspect.Filter{}) {
		if err != nil {
			return 0, describe(err)
		}
		n += len(tuples(&s))
	}
	return n, nil
}

func countTuples(sockets []inspect.Socket) (n int) {
	for i := range sockets {
		n += len(tuples(&sockets[i]))
	}
	return n
}

// tuples are the tuples of a socket that the hash should have. Those of one peer are in the order in which
// they were written, since the hash has only one entry for it.
func tuples(s *inspect.Socket) []revnat.Tuple {
	var all []revnat.Tuple
	for _, t := range []*revnat.Tuple{s.Former, s.Conn} {
		if t != nil && !t.Subflow {
			all = append(all, *t)
		}
	}
	return append(all, s.Peers...)
}

// entries are those that the hash has, or should have.
type entries map[lbmap.ReverseSKKey]lbmap.ReverseSKValue

// difference is what the hash lacks of what sockets hold.
type difference struct {
	held    int // tuples of sockets
	missing entries
	// others are entries with another service for the same peer. Programs that know only the hash write such
	// entries.
	others entries
	// unreachable is how many could not be found by their socket.
	unreachable int
}

// check returns an error wrapping [ErrHashIncomplete] if the hash lacks something. With exactly, its entries
// must also have the same service. With refill, what can be added does not count.
func (d difference) check(exactly, refill bool) error {
	n := len(d.missing)
	if refill {
		n = d.unreachable
	}
	if exactly {
		n += len(d.others)
	}
	if n > 0 {
		return fmt.Errorf("%w: %d of them", ErrHashIncomplete, n)
	}
	return nil
}

// lackedByHash compares sockets and hash, until they agree or what differs stays.
func (dp *Datapath) lackedByHash(ctx context.Context) (difference, error) {
	var d difference
	for look := range looks {
		all, err := dp.sockets(ctx)
		if err != nil {
			return d, err
		}
		now, err := dp.compare(hashEntries(all))
		if err != nil {
			return d, err
		}
		now.held = countTuples(all)
		if look > 0 {
			now.missing.keep(d.missing)
			now.others.keep(d.others)
		}
		if d = now; len(d.missing)+len(d.others) == 0 {
			break
		}
	}
	for key := range d.missing {
		if !dp.reachable(key) {
			d.unreachable++
		}
	}
	return d, nil
}

// HashDifference is how much of what sockets hold the hash lacks.
type HashDifference struct {
	// Tuples are those that sockets hold.
	Tuples int `json:"tuples"`
	// Missing have no entry in the hash, and Others have one that says something else.
	Missing int `json:"missing"`
	Others  int `json:"others"`
}

// CompareHash finds out what the hash lacks of what sockets hold, which takes a look at every socket. In mode
// mirror that should be nothing; if it is something, there is a problem with the code [ProblemHashLacks].
// Returns an error wrapping [ErrPermission] or [ErrClosed].
func (dp *Datapath) CompareHash(ctx context.Context) (HashDifference, *Problem, error) {
	mode, err := dp.Mode()
	if err != nil {
		return HashDifference{}, nil, err
	}
	lacking, err := dp.lackedByHash(ctx)
	if err != nil {
		return HashDifference{}, nil, err
	}
	d := HashDifference{Tuples: lacking.held, Missing: len(lacking.missing), Others: len(lacking.others)}
	if mode != ModeMirror || d.Missing+d.Others == 0 {
		return d, nil, nil
	}
	return d, &Problem{
		Code: ProblemHashLacks, Mend: "revsk migrate",
		Text: fmt.Sprintf("the hash lacks %d of the %d tuples that sockets hold, and has another service for %d: the agent's programs would show backends to them",
			d.Missing, d.Tuples, d.Others),
	}, nil
}

// keep removes what is not in other, too.
func (e entries) keep(other entries) {
	maps.DeleteFunc(e, func(key lbmap.ReverseSKKey, value lbmap.ReverseSKValue) bool {
		before, ok := other[key]
		return !ok || before != value
	})
}

// refill adds to the hash the tuples of sockets that it lacks, since it may have evicted them. Entries that
// differ stay.
func (dp *Datapath) refill(ctx context.Context) error {
	lacking, err := dp.lackedByHash(ctx)
	if err != nil || len(lacking.missing) == 0 {
		return err
	}
	for key, value := range lacking.missing {
		if !dp.reachable(key) {
			continue
		}
		m := dp.hashOf(key)
		if err := m.Update(key, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("writing the hash: %w", maplayout.Frozen(m, err, lbmap.ErrFrozen))
		}
	}
	// What was closed meanwhile would leave an entry.
	all, err := dp.sockets(ctx)
	if err != nil {
		return err
	}
	held := hashEntries(all)
	for key := range lacking.missing {
		if _, ok := held[key]; ok || !dp.reachable(key) {
			continue
		}
		if err := dp.hashOf(key).Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("deleting from the hash: %w", err)
		}
	}
	return nil
}

// reachable tells whether a socket would find an entry.
func (dp *Datapath) reachable(key lbmap.ReverseSKKey) bool {
	return key.Cookie != 0 && dp.hashOf(key) != nil
}

// hashOf is the map of the hash that an entry belongs to; nil if it is not there.
func (dp *Datapath) hashOf(key lbmap.ReverseSKKey) *ebpf.Map {
	if key.Backend.Addr().Is4() {
		return dp.maps[mapReverse4]
	}
	return dp.maps[mapReverse6]
}

// hashEntries are what the hash has to say of what sockets hold.
func hashEntries(sockets []inspect.Socket) entries {
	all := make(entries)
	for i := range sockets {
		s := &sockets[i]
		for _, t := range tuples(s) {
			all[lbmap.ReverseSKKey{Cookie: s.Cookie, Backend: t.Peer}] = lbmap.ReverseSKValue{Service: t.Service, RevNat: t.RevNATIndex}
		}
	}
	return all
}

func (dp *Datapath) compare(held entries) (difference, error) {
	d := difference{missing: make(entries), others: make(entries)}
	for key, value := range held {
		var now lbmap.ReverseSKValue
		err := ebpf.ErrKeyNotExist
		if m := dp.hashOf(key); m != nil {
			err = m.Lookup(key, &now)
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			d.missing[key] = value
		case err != nil:
			return d, fmt.Errorf("reading the hash: %w", err)
		case now != value:
			d.others[key] = value
		}
	}
	return d, nil
}
