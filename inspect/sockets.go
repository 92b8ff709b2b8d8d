// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"slices"
)

// Sockets returns what a [Reader] that is opened for it reads, as a slice: sorted by namespace, protocol,
// family, local address, peer and cookie. It returns the errors of [Open] and [Reader.Sockets].
func Sockets(ctx context.Context, maps Maps, opts Options) ([]Socket, error) {
	r, err := Open(maps, opts)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.sorted(ctx, Filter{})
}

func (r *Reader) sorted(ctx context.Context, f Filter) ([]Socket, error) {
	sockets := []Socket{}
	for s, err := range r.Sockets(ctx, f) {
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
	}
	slices.SortFunc(sockets, compareSockets)
	return sockets, nil
}
