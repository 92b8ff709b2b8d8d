// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNilOrClosedIsAnError(t *testing.T) {
	var none *Agent
	require.ErrorIs(t, none.Run(t.Context()), ErrClosed)
	require.ErrorIs(t, none.Configure(Options{}), ErrClosed)
	require.ErrorIs(t, none.Ready(), ErrClosed)
	require.ErrorIs(t, none.Alive(), ErrClosed)

	n := newNode(t)
	a, err := New(n.options())
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	require.NoError(t, a.Run(ctx))
	require.ErrorIs(t, a.Run(ctx), ErrClosed)
}

// Whatever the node is like: nobody mends it while a part of the agent waits.
func TestAnAgentThatIsStuckSaysSo(t *testing.T) {
	a, err := New(Options{})
	require.NoError(t, err)
	a.view.looked, a.view.loaded = true, true
	require.NoError(t, a.Ready())
	a.beats[loopBackends] = time.Now().Add(-2 * stuckAfter)
	require.ErrorContains(t, a.Alive(), `the loop "backends" has been stuck for 6m0s`)
	require.Equal(t, a.Alive(), a.Ready())
}
