// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/revnat"
)

// SweepOptions are the options of [OverflowSweep].
type SweepOptions struct {
	// DryRun leaves everything in place and only counts.
	DryRun bool
}

// OverflowSweep removes the entries of revsk_overflow whose socket no longer exists, and returns how
// many they were. Sockets leave such entries when they close while the release hook is not attached,
// or with a chain longer than the hook can walk on kernels before 5.17.
//
// It is safe beside running hooks: what a living socket remembers is never touched. It needs
// maps.Peers and maps.Overflow.
//
// Returns an error wrapping [ErrNotSupported] or [ErrNoMap]; or, having removed nothing, one wrapping
// [ErrIncomplete] if there are more than 1,000,000 sockets with storage in revsk_peers, because then
// the kernel cannot tell for certain which of them live. After another error removed is how many
// entries were removed before it.
func OverflowSweep(ctx context.Context, maps Maps, opts SweepOptions) (removed int, err error) {
	removed, err = sweep(ctx, maps, opts)
	if err != nil {
		return removed, fmt.Errorf("sweeping revsk_overflow: %w", err)
	}
	return removed, nil
}

// The order makes it safe. An entry in the snapshot was put there by its socket before: by then the
// socket had its storage, with its cookie in it, and both stay for as long as the socket. So if the
// iterator, which starts afterwards and visits every storage that exists all along, does not meet the
// cookie, the socket is gone. Cookies are not used again, so the entry cannot become another socket's
// before it is deleted. (The other way round, a socket that comes between iterator and snapshot would
// have entries and not have been met.)
func sweep(ctx context.Context, maps Maps, opts SweepOptions) (removed int, err error) {
	err = need(map[string]*ebpf.Map{"revsk_peers": maps.Peers, "revsk_overflow": maps.Overflow})
	if err != nil {
		return 0, err
	}
	snapshot, err := readOverflow(maps.Overflow)
	if err != nil {
		return 0, err
	}
	living, err := livingSockets(ctx, maps.Peers, snapshot)
	if err != nil {
		return 0, err
	}
	for _, e := range snapshot {
		if living[e.key.Cookie] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		err := remove(maps.Overflow, e.key, opts.DryRun)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			// The release hook came first: the socket lived when the snapshot was made.
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("removing an entry: %w", err)
		}
		removed++
	}
	return removed, nil
}

func remove(m *ebpf.Map, key revnat.OverflowKey, dryRun bool) error {
	if dryRun {
		return m.Lookup(key, new(revnat.OverflowValue))
	}
	return m.Delete(key)
}

// livingSockets returns the cookies of those sockets with entries that still exist.
func livingSockets(ctx context.Context, peers *ebpf.Map, entries []overflowEntry) (map[uint64]bool, error) {
	suspects := make(map[uint64]bool)
	for _, e := range entries {
		suspects[e.key.Cookie] = true
	}
	if len(suspects) == 0 {
		return nil, nil
	}
	spec, err := programs.LoadSweep()
	if err != nil {
		return nil, err
	}
	// The program meets these as what it iterates over only; they are in the file for their types.
	delete(spec.Maps, programs.SweepMapRevskConn)
	delete(spec.Maps, programs.SweepMapRevskFormer)
	delete(spec.Maps, programs.SweepMapRevskPeers)
	spec.Maps[programs.SweepMapRevskSuspects].MaxEntries = uint32(len(suspects))
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, loadError(fmt.Errorf("loading iterator: %w", err))
	}
	defer coll.Close()
	seen := coll.Maps[programs.SweepMapRevskSuspects]
	for cookie := range suspects {
		if err := seen.Put(cookie, uint32(0)); err != nil {
			return nil, fmt.Errorf("telling the iterator what to look for: %w", err)
		}
	}
	whole, err := iterate(ctx, coll.Programs[programs.SweepProgMarkLiving], peers)
	if err != nil {
		return nil, err
	}
	if !whole {
		return nil, fmt.Errorf("more than 1,000,000 sockets: %w", ErrIncomplete)
	}
	living := make(map[uint64]bool)
	for cookie := range suspects {
		var mark uint32
		if err := seen.Lookup(cookie, &mark); err != nil {
			return nil, fmt.Errorf("reading what the iterator saw: %w", err)
		}
		if mark != 0 {
			living[cookie] = true
		}
	}
	return living, nil
}
