// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"
)

// sleep returns the context's error if it ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// untilTick is how long it is until the next of the times that come once in every period, for all loops alike: for an idle agent to
// wake up costs about as much as what it then looks at.
func (a *Agent) untilTick(every time.Duration) time.Duration {
	return every - time.Since(a.began)%every
}
