// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"time"
)

// stepReconsider is a step of a migration.
const stepReconsider = "look at services again"

// staleInterval is how long after the first look at the services the second one is: a service that is without
// backends for a moment loses nobody.
const staleInterval = 2 * time.Second

// reconsider visits once more the sockets of entries whose services did not stand, and do by now.
func (m *migration) reconsider(ctx context.Context) error {
	stale := withResult(m.entries, ResultStale)
	if len(stale) == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(staleInterval):
	}
	return m.do(stepReconsider, func() error {
		services, _, err := openServices(ctx, m.opts.Loader.MapsDir)
		if err != nil {
			return err
		}
		now := services.cached()
		var back []*entry
		for _, e := range stale {
			if !now.stale(e.value) {
				e.stale, e.result = false, ResultUnknown
				back = append(back, e)
			}
		}
		if len(back) == 0 {
			return nil
		}
		return m.visitor.visit(ctx, back)
	})
}
