// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	programs "github.com/revsk/revsk/bpf/iter"
)

func TestAnIteratorThatTheKernelHasNotIsNotSupported(t *testing.T) {
	spec, err := programs.LoadDump()
	require.NoError(t, err)
	for name := range spec.Programs {
		if name != programs.DumpProgDumpConnUnlocked {
			delete(spec.Programs, name)
		}
	}
	prog := spec.Programs[programs.DumpProgDumpConnUnlocked]
	prog.AttachTo = "no_such_thing"
	_, err = ebpf.NewCollection(spec)
	require.Error(t, err)
	assert.ErrorIs(t, loadError(err), ErrNotSupported)
	assert.NotErrorIs(t, loadError(errors.ErrUnsupported), ErrNotSupported)
	assert.NotErrorIs(t, loadError(unix.EPERM), ErrNotSupported)
}

func TestBufferSizes(t *testing.T) {
	for n, want := range map[int]int{
		0: 256 << 10, 1<<20 + 5: 1 << 20, 1 << 30: 1 << 30, 1 << 40: 1 << 30,
	} {
		assert.Equal(t, want, bufferFor(n), n)
	}
}
