// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

// A few entries are counted one by one, many by the kernel, and fewer than that too once its program is loaded.
func TestEntriesAreCounted(t *testing.T) {
	for _, n := range []int{0, 10, 200, 10_000, 200, 10, 0} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 20_000})
		require.NoError(t, err)
		defer m.Close()
		for i := range uint64(n) {
			require.NoError(t, m.Put(i, i))
		}
		counted, err := loader.CountEntries(m)
		require.NoError(t, err)
		require.Equal(t, n, counted)
	}
}
