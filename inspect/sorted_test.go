// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// assertSorted asserts that all sockets at once, read twice, are those that were read one by one.
func assertSorted(t *testing.T, maps Maps, opts Options, v variant, want []Socket) {
	t.Helper()
	r, err := openReader(maps, opts, []variant{v})
	require.NoError(t, err)
	s, err := r.Sorted(t.Context(), Filter{})
	require.NoError(t, err)
	assert.ErrorIs(t, r.Close(), ErrInUse)
	for range 2 {
		i := 0
		for socket, err := range s.Sockets(t.Context()) {
			require.NoError(t, err)
			require.Less(t, i, len(want))
			require.Equal(t, want[i], socket)
			i++
		}
		require.Len(t, want, i)
	}
	s.Close()
	require.NoError(t, r.Close())
	// A second time it does not give the reader, which is closed, to others.
	s.Close()
	assert.ErrorIs(t, r.Close(), ErrInUse)
	for _, s := range []*Sorted{nil, s} {
		for _, err := range s.Sockets(t.Context()) {
			assert.ErrorIs(t, err, ErrInUse)
		}
	}
}

// randomRecords have few values in each field, so that many differ in one of them only.
func randomRecords(t testing.TB, n int) []record {
	addresses := []string{"0.0.0.0", "10.0.0.1", "10.0.0.2", "::", "::1", "fd00::1", "fd00::2", "::fffe:a00:1"}
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]record, n)
	for i := range all {
		r := recordOf(t, tupleTo("10.0.1.1:5353"))
		binary.NativeEndian.PutUint64(r[idAt:], []uint64{0, 1, 4094, 4095, 4096, 1 << 20}[random.IntN(6)])
		binary.NativeEndian.PutUint16(r[protocolAt:], []uint16{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE}[random.IntN(3)])
		r[familyAt] = []byte{byte(IPv4), byte(IPv6)}[random.IntN(2)]
		for at, port := range map[int]int{localAt: localPortAt, peerAt: peerPortAt} {
			a := netip.MustParseAddr(addresses[random.IntN(len(addresses))]).As16()
			copy(r[at:], a[:])
			binary.NativeEndian.PutUint16(r[port:], uint16(random.IntN(3))*0x1001)
		}
		for _, at := range []int{cookieAt, inodeAt} {
			binary.NativeEndian.PutUint64(r[at:], random.Uint64N(2))
		}
		all[i] = r
	}
	return all
}

func TestRecordsAreInTheOrderOfSockets(t *testing.T) {
	all := randomRecords(t, 400)
	for _, a := range all {
		for _, b := range all {
			x, err := a.whole(nil)
			require.NoError(t, err)
			y, err := b.whole(nil)
			require.NoError(t, err)
			x.NetNS, y.NetNS = NetNS{Inode: a.id()}, NetNS{Inode: b.id()}
			want := x.Compare(&y)
			require.Equal(t, want, compareRecords(a, b), "%v %v", x, y)
			if c := cmp.Compare(a.sortKey(), b.sortKey()); c != 0 {
				require.Equal(t, want, c, "%v %v", x, y)
			}
		}
	}
}

func BenchmarkSortRecords(b *testing.B) {
	const n = 10000
	random := rand.New(rand.NewPCG(1, 2))
	s := Sorted{reader: &Reader{programs: new(dumpPrograms)}}
	for range n {
		r := recordOf(b, tupleTo("10.0.1.1:5353"))
		binary.NativeEndian.PutUint64(r[idAt:], 1)
		binary.NativeEndian.PutUint16(r[localPortAt:], uint16(random.Uint32()))
		binary.NativeEndian.PutUint64(r[cookieAt:], random.Uint64())
		s.at = append(s.at, position{at: len(s.reader.programs.buffer)})
		s.reader.programs.buffer = append(s.reader.programs.buffer, r...)
	}
	shuffled := slices.Clone(s.at)
	for b.Loop() {
		copy(s.at, shuffled)
		s.sort()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/socket")
}

func BenchmarkOwners(b *testing.B) {
	t := ownerTable{read: true, alone: map[uint32][]Process{7: {{ID: 7, Command: "program"}}}}
	const n = 100000
	for inode := range uint64(n) {
		t.files = append(t.files, inode<<32|7)
	}
	random := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		if owners, err := t.of(b.Context(), 1+random.Uint64N(n-1)); err != nil || len(owners) != 1 {
			b.Fatal(owners, err)
		}
	}
}
