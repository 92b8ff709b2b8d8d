// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/revnat"
)

// Options of [Sockets]. The zero value is what is wanted mostly.
type Options struct {
	// SkipOwners leaves Socket.Owners empty, which saves looking through all open files.
	SkipOwners bool
	// NetNSDir is the directory with the names of network namespaces. Default: /run/netns.
	NetNSDir string
	// BufferSize is the size in bytes of the buffer between the kernel and this process, rounded
	// up to a power of two, at least one page. It is only a first guess: a buffer that turns out
	// to be too small is replaced by a larger one. Default: 4 MiB.
	BufferSize int
}

// Sockets returns the sockets that hold a tuple, in all network namespaces, sorted by namespace,
// protocol, family, local address, peer and cookie.
//
// The hooks go on meanwhile, so this is no snapshot: sockets and tuples that come or go may be in it
// or not, and with more than 1,000,000 sockets one that closes may make it miss another. No tuple is
// half an old one and half a new one.
//
// Returns an error wrapping [ErrNotSupported], [ErrNoMap], or [ErrIncomplete]; and one wrapping
// [ebpf.ErrMapIncompatible], or those of package revnat's decoders, for maps of another layout.
func Sockets(ctx context.Context, maps Maps, opts Options) ([]Socket, error) {
	sockets, err := list(ctx, maps, opts, allVariants)
	if err != nil {
		return nil, fmt.Errorf("listing sockets: %w", err)
	}
	return sockets, nil
}

func list(ctx context.Context, maps Maps, opts Options, variants []variant) ([]Socket, error) {
	err := need(map[string]*ebpf.Map{
		"revsk_conn": maps.Conn, "revsk_former": maps.Former, "revsk_peers": maps.Peers, "revsk_overflow": maps.Overflow,
	})
	if err != nil {
		return nil, err
	}
	// A hook may move a tuple from the chain to a slot, or back, between any two readings. Both
	// before and after finds the one that was in the chain before the slots were read and the one
	// that was there after.
	before, err := readOverflow(maps.Overflow)
	if err != nil {
		return nil, err
	}
	dumped, err := dump(ctx, maps, opts.BufferSize, variants)
	if err != nil {
		return nil, err
	}
	after, err := readOverflow(maps.Overflow)
	if err != nil {
		return nil, err
	}

	joined, err := join(dumped)
	if err != nil {
		return nil, err
	}
	chains := chainsByCookie(before, after)
	sockets := make([]Socket, 0, len(joined))
	for _, s := range joined {
		s.Peers = mergePeers(s.Peers, chains[s.Cookie])
		if s.Conn != nil || s.Former != nil || len(s.Peers) > 0 {
			sockets = append(sockets, s.Socket)
		}
	}
	if err := addNames(sockets, opts.NetNSDir); err != nil {
		return nil, err
	}
	if !opts.SkipOwners {
		if err := addOwners(ctx, sockets); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(sockets, compareSockets)
	return sockets, nil
}

// mergePeers adds tuples to those of the slots. A peer has one tuple; of two that differ the first
// is the latest.
func mergePeers(slots, chain []revnat.Tuple) []revnat.Tuple {
	all := slices.Concat(slots, chain)
	slices.SortStableFunc(all, comparePeers)
	return slices.CompactFunc(all, func(a, b revnat.Tuple) bool { return a.Peer == b.Peer })
}

// chainsByCookie returns the tuples in both readings of the map, those of the second one first.
func chainsByCookie(before, after []overflowEntry) map[uint64][]revnat.Tuple {
	chains := make(map[uint64][]revnat.Tuple)
	for _, entries := range [][]overflowEntry{after, before} {
		for _, e := range entries {
			chains[e.key.Cookie] = append(chains[e.key.Cookie], e.value.Tuple)
		}
	}
	return chains
}
