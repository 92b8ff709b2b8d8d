// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"slices"
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
	if err := maps.hold(); err != nil {
		return nil, err
	}
	dumped, err := dump(ctx, maps, opts.BufferSize, variants)
	if err != nil {
		return nil, err
	}
	joined, err := join(dumped)
	if err != nil {
		return nil, err
	}
	sockets := make([]Socket, 0, len(joined))
	for _, s := range joined {
		slices.SortFunc(s.Peers, comparePeers)
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
