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
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 8, ValueSize: 8, MaxEntries: uint32(4 * size)})
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

// A bucket may have more entries than one call has room for.
func TestEachEntryComesOnceWhateverTheRoom(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	defer func(before int) { size = before }(size)
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: 8, MaxEntries: 5000})
		require.NoError(t, err)
		defer m.Close()
		size = 4096
		var keys []uint32
		var values []uint64
		for i := range uint32(4000) {
			keys, values = append(keys, i), append(values, uint64(i)+7)
		}
		require.NoError(t, Write(m, keys, values))
		for _, size = range []int{1, 2, 7, 4096} {
			seen := make(map[uint32]int)
			require.NoError(t, Each(m, func(k uint32, v uint64) {
				seen[k]++
				if k < 4000 {
					require.Equal(t, uint64(k)+7, v)
				}
			}))
			want := map[bool]int{false: 4000, true: 5000}[kind == ebpf.Array]
			require.Len(t, seen, want, "%v, room for %d", kind, size)
			for k, n := range seen {
				require.Equal(t, 1, n, "%d", k)
			}
		}
	}
}
