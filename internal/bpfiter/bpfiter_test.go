// SPDX-License-Identifier: Apache-2.0

package bpfiter

import (
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pausing is an iterator over so many sockets that the kernel pauses.
type pausing struct{ pauses int }

func (p *pausing) Read([]byte) (int, error) {
	if p.pauses == 0 {
		return 0, io.EOF
	}
	p.pauses--
	return 0, unix.EAGAIN
}

func TestAnIteratorThatPausesIsReadToItsEnd(t *testing.T) {
	for pauses := range 3 {
		r := &pausing{pauses}
		whole, err := Drain(t.Context(), r)
		require.NoError(t, err)
		assert.Equal(t, pauses == 0, whole)
		assert.Zero(t, r.pauses)
	}
}

func TestAnIteratorStopsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Drain(ctx, &pausing{1000})
	assert.ErrorIs(t, err, context.Canceled)
}
