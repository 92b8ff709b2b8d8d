// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	programs "github.com/revsk/revsk/bpf/iter"
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
		whole, err := drain(t.Context(), r)
		require.NoError(t, err)
		assert.Equal(t, pauses == 0, whole)
		assert.Zero(t, r.pauses)
	}
}

func TestAnIteratorStopsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := drain(ctx, &pausing{1000})
	assert.ErrorIs(t, err, context.Canceled)
}

func TestAnIteratorThatTheKernelHasNotIsNotSupported(t *testing.T) {
	spec, err := programs.LoadSweep()
	require.NoError(t, err)
	prog := spec.Programs[programs.SweepProgMarkLiving]
	prog.AttachTo = "no_such_thing"
	_, err = ebpf.NewCollection(spec)
	require.Error(t, err)
	assert.ErrorIs(t, loadError(err), ErrNotSupported)
	assert.NotErrorIs(t, loadError(errors.ErrUnsupported), ErrNotSupported)
	assert.NotErrorIs(t, loadError(unix.EPERM), ErrNotSupported)
}

func TestBufferSizes(t *testing.T) {
	for n, want := range map[int]int{
		0: 4096, 4096: 4096, 4097: 8192, 1 << 30: 1 << 30, 1<<30 + 1: 1 << 30, 1 << 40: 1 << 30,
	} {
		if want < unix.Getpagesize() {
			want = unix.Getpagesize()
		}
		assert.Equal(t, want, bufferFor(n), n)
	}
}
