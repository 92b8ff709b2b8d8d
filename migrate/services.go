// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"

	"github.com/revsk/revsk/lbmap"
)

// services knows which entries are stale: those whose service is gone, has no backends, or has another
// reverse-NAT index.
type services map[uint16][]lbmap.Service

func readServices(ctx context.Context, tables *lbmap.Tables) (services, []lbmap.Service, error) {
	all, err := tables.Services(ctx)
	if err != nil {
		return nil, nil, err
	}
	s := make(services)
	for _, svc := range all {
		s[svc.RevNat] = append(s[svc.RevNat], svc)
	}
	return s, all, nil
}

// staleCache remembers what services says: many entries have the same value.
type staleCache struct {
	services services
	known    map[hashValue]bool
}

func (s services) cached() *staleCache { return &staleCache{s, make(map[hashValue]bool)} }

func (c *staleCache) stale(value hashValue) bool {
	stale, ok := c.known[value]
	if !ok {
		stale = c.services.stale(value.exported())
		c.known[value] = stale
	}
	return stale
}

// stale follows service_stands in bpf/lib/current.h, and where that depends on what only the socket knows
// (its protocol, its namespace) takes the entry for current: the hooks have the last word.
func (s services) stale(value lbmap.ReverseSKValue) bool {
	for _, svc := range s[value.RevNat] {
		front := svc.Frontend.AddrPort
		here := front == value.Service ||
			front.Port() == value.Service.Port() && front.Addr().IsUnspecified() && front.Addr().Is4() == value.Service.Addr().Is4()
		if here && (len(svc.Backends) > 0 || svc.Flags&lbmap.FlagL7LoadBalancer != 0) {
			return false
		}
	}
	return true
}
