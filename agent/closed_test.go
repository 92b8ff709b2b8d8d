// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"testing"

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
