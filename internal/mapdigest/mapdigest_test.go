// SPDX-License-Identifier: Apache-2.0

package mapdigest

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/oldkernel"
)

func newHash(t testing.TB, valueSize uint32, entries int) *ebpf.Map {
	t.Helper()
	require.NoError(t, rlimit.RemoveMemlock())
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: valueSize, MaxEntries: 65536})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	for i := range entries {
		require.NoError(t, m.Put(uint32(i+1), value(valueSize, uint32(i))))
	}
	return m
}

func value(size, n uint32) []byte {
	return binary.NativeEndian.AppendUint32(make([]byte, size-4, size), n)
}

// openVariant opens a reader that works in a certain way.
func openVariant(t *testing.T, m *ebpf.Map, v variant) *Reader {
	t.Helper()
	r, err := open(m, v)
	if err != nil && v == inOneCall {
		oldkernel.Skip(t, 5, 14, err.Error())
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func eachVariant(t *testing.T, f func(t *testing.T, v variant)) {
	for v, name := range []string{inOneCall: "in one call", byIterator: "by iterator"} {
		t.Run(name, func(t *testing.T) { f(t, variant(v)) })
	}
}

func TestDigestChangesWithValues(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		for _, size := range []uint32{12, 24} {
			m := newHash(t, size, 100)
			r := openVariant(t, m, v)
			read := func() Digest {
				d, err := r.Read(t.Context())
				require.NoError(t, err)
				return d
			}
			first := read()
			require.EqualValues(t, 100, first.Count)
			require.Equal(t, first, read())

			// A value that goes, and one that changes.
			require.NoError(t, m.Delete(uint32(7)))
			require.EqualValues(t, 99, read().Count)
			require.NoError(t, m.Put(uint32(7), value(size, 1234)))
			changed := read()
			require.Equal(t, first.Count, changed.Count)
			require.NotEqual(t, first.Sum, changed.Sum)

			// The same values by other keys.
			require.NoError(t, m.Delete(uint32(7)))
			require.NoError(t, m.Put(uint32(1000), value(size, 6)))
			require.Equal(t, first, read())
		}
	})
}

func TestDigestOfNothing(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant) {
		d, err := openVariant(t, newHash(t, 12, 0), v).Read(t.Context())
		require.NoError(t, err)
		require.Equal(t, Digest{}, d)
	})
}

func TestEntries(t *testing.T) {
	for _, size := range []uint32{12, 24} {
		m := newHash(t, size, 100)
		r, err := Open(m)
		require.NoError(t, err)
		defer r.Close()
		entries := func() uint64 {
			n, counted, err := r.Entries()
			require.NoError(t, err)
			if !counted {
				oldkernel.Skip(t, 6, 6, "no count of a map's entries")
			}
			return n
		}
		require.EqualValues(t, 100, entries())
		require.NoError(t, m.Delete(uint32(7)))
		require.EqualValues(t, 99, entries())
		require.NoError(t, m.Put(uint32(8), value(size, 1)))
		require.EqualValues(t, 99, entries(), "a value that changes")
		require.NoError(t, m.Put(uint32(1000), value(size, 1)))
		require.EqualValues(t, 100, entries())
	}
}

func TestCount(t *testing.T) {
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash} {
		require.NoError(t, rlimit.RemoveMemlock())
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 16, ValueSize: 8, MaxEntries: 65536})
		require.NoError(t, err)
		defer m.Close()
		for i := range uint64(500) {
			require.NoError(t, m.Put([2]uint64{i, 1}, i))
		}
		n, err := Count(t.Context(), m)
		require.NoError(t, err)
		require.EqualValues(t, 500, n)
	}
}

func TestMapOfAnotherLayoutIsRefused(t *testing.T) {
	_, err := Open(newHash(t, 16, 1))
	require.Error(t, err)
}

// As many backends as a large node has, in a map of the usual size.
func BenchmarkRead(b *testing.B) {
	m := newHash(b, 12, 20_000)
	for v, name := range []string{inOneCall: "one call", byIterator: "iterator"} {
		b.Run(name, func(b *testing.B) {
			r, err := open(m, variant(v))
			require.NoError(b, err)
			defer r.Close()
			for b.Loop() {
				_, err := r.Read(b.Context())
				require.NoError(b, err)
			}
		})
	}
}
