// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
)

// What is not there is no reason to leave what comes after it.
func TestDeleteGoesOnAfterKeysThatAreNotThere(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 8, ValueSize: 8, MaxEntries: 4 * size})
		require.NoError(t, err)
		defer m.Close()
		var keys, values, all []uint64
		for i := range uint64(size + 100) {
			all = append(all, i)
			if i%10 != 0 {
				keys, values = append(keys, i), append(values, i)
			}
		}
		require.NoError(t, Write(m, keys, values))
		require.NoError(t, Delete(m, all[50:]))
		left, _, err := Read[uint64, uint64](m)
		require.NoError(t, err)
		require.Len(t, left, 45, kind)
		for _, key := range left {
			require.Less(t, key, uint64(50), kind)
		}
		require.NoError(t, Delete(m, all))
		left, _, err = Read[uint64, uint64](m)
		require.NoError(t, err)
		require.Empty(t, left, kind)
		require.NoError(t, Delete[uint64](m, nil))
	}
}
