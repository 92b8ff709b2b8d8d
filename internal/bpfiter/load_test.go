// SPDX-License-Identifier: Apache-2.0

package bpfiter

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A process that was once out of descriptors has variables nonetheless.
func TestVariablesAfterAFailure(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock())
	load := func() (*ebpf.Collection, error) {
		return Load(&ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{
			".bss": {Name: ".bss", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1},
		}}, nil)
	}
	var old unix.Rlimit
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old))
	none := unix.Rlimit{Cur: 0, Max: old.Max}
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &none, nil))
	_, err := load()
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil))
	require.Error(t, err)

	c, err := load()
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Maps[".bss"].Memory()
	require.NoError(t, err)
}
