// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/revsk/revsk/lbmap"
)

// ErrNoBackends is returned when no service has a backend: then all of them look gone, while it is
// more likely that the control plane has not written them yet.
var ErrNoBackends = errors.New("the maps have no backends")

// Backend is what connections through a service lead to.
type Backend struct {
	// AddrPort is plain IPv4 or IPv6, never v4-mapped.
	AddrPort netip.AddrPort
	// Protocol is that of the sockets. [lbmap.ProtocolAny] stands for every one.
	Protocol lbmap.Protocol
}

// String returns ADDR:PORT/PROTO.
func (b Backend) String() string { return fmt.Sprintf("%v/%v", b.AddrPort, b.Protocol) }

// Compare orders by address (IPv4 first), port and protocol. It returns -1, 0 or 1.
func (b Backend) Compare(o Backend) int {
	return cmp.Or(b.AddrPort.Compare(o.AddrPort), cmp.Compare(b.Protocol, o.Protocol))
}

// GoneBackends returns those of the backends that sockets are connected to which the load balancer has no more, sorted:
// neither does the backend map have them, whatever their state, nor are they the L7 proxy of a
// service. Ask for [Reader.ConnectedBackends] first, so that a backend that is added meanwhile is not taken for gone.
//
// Returns an error wrapping [ErrNoBackends] if sockets are connected and there are no backends at all,
// one wrapping [lbmap.ErrNoMap] if the maps of a backend's family are missing, and those of
// [lbmap.Tables.Services].
func GoneBackends(ctx context.Context, connected []Backend, tables *lbmap.Tables) ([]Backend, error) {
	gone, err := goneBackends(ctx, connected, tables)
	if err != nil {
		return nil, fmt.Errorf("looking for backends that are gone: %w", err)
	}
	return gone, nil
}

func goneBackends(ctx context.Context, connected []Backend, tables *lbmap.Tables) ([]Backend, error) {
	backends, err := tables.Backends(ctx)
	if err != nil {
		return nil, err
	}
	services, err := tables.Services(ctx)
	if err != nil {
		return nil, err
	}
	if len(backends) == 0 && len(connected) > 0 {
		return nil, ErrNoBackends
	}
	present := make(BackendSet)
	for _, b := range backends {
		present[Backend{b.AddrPort, b.Protocol}] = struct{}{}
	}
	for _, s := range services {
		if s.Flags.Has(lbmap.FlagL7LoadBalancer) {
			for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
				present[Backend{netip.AddrPortFrom(loopback, s.L7ProxyPort), lbmap.ProtocolAny}] = struct{}{}
			}
		}
	}
	var gone []Backend
	for _, b := range connected {
		if v4 := b.AddrPort.Addr().Is4(); v4 && tables.Backends4 == nil || !v4 && tables.Backends6 == nil {
			return nil, fmt.Errorf("backends of the family of %v: %w", b.AddrPort, lbmap.ErrNoMap)
		}
		if !present.Has(b.AddrPort, b.Protocol) {
			gone = append(gone, b)
		}
	}
	slices.SortFunc(gone, Backend.Compare)
	return slices.Compact(gone), nil
}
