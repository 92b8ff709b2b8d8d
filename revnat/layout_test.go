// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/bpf/sock"
)

// Tuples of which no two bytes are the same where they could be mixed up.
var (
	tuple4 = Tuple{
		Peer:        netip.MustParseAddrPort("10.1.2.3:4660"),
		Service:     netip.MustParseAddrPort("10.96.5.6:22136"),
		RevNATIndex: 0x9abc,
		Migrated:    true,
		BackendID:   0x11121314,
		Time:        0x21222324 * TimeUnit,
	}
	tuple6 = Tuple{
		Peer:        netip.MustParseAddrPort("[fd00:0102:0304:0506:0708:090a:0b0c:0d0e]:53"),
		Service:     netip.MustParseAddrPort("[fd01:1112:1314:1516:1718:191a:1b1c:1d1e]:5353"),
		RevNATIndex: 7,
		Overtaken:   true,
		Age:         0xa9,
		BackendID:   math.MaxUint32,
		Time:        math.MaxUint32 * TimeUnit,
	}
)

const (
	hex4 = `00000000 00000000 0000ffff 0a010203
		00000000 00000000 0000ffff 0a600506
		1234 5678 9abc 01 00 =11121314 =21222324`
	hex6 = `fd000102 03040506 0708090a 0b0c0d0e
		fd011112 13141516 1718191a 1b1c1d1e
		0035 14e9 0007 02 a9 =ffffffff =ffffffff`
)

// wire reads hexadecimal digits. A word after "=" is a number in the byte order of the machine.
func wire(t testing.TB, s string) []byte {
	t.Helper()
	var all []byte
	for _, word := range strings.Fields(s) {
		digits, number := strings.CutPrefix(word, "=")
		b, err := hex.DecodeString(digits)
		require.NoError(t, err)
		if number && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
			slices.Reverse(b)
		}
		all = append(all, b...)
	}
	return all
}

var peers = PeersValue{
	Slots:        [Slots]Tuple{tuple4, {}, tuple6},
	TableClass:   5,
	TableMaps:    0x1112,
	TableCount:   0x3132,
	TableVersion: 0x41424344,
	SlotsTried:   3,
	HasConn:      true,
}

const (
	hexNone48 = "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
	hexPeers  = "00000000 =1112 01 03 " + hex4 + " " + hexNone48 + " " + hex6 + ` =41424344 =3132 05 00
		00000000 00000000 00000000 00000000 00000000 00000000`
)

func TestEveryTypeHasTheBytesOfItsMap(t *testing.T) {
	t.Run("tuple of IPv4", func(t *testing.T) { sameBytes(t, tuple4, hex4) })
	t.Run("tuple of IPv6", func(t *testing.T) { sameBytes(t, tuple6, hex6) })
	t.Run("no tuple", func(t *testing.T) { sameBytes(t, Tuple{}, hexNone48) })
	t.Run("conn", func(t *testing.T) { sameBytes(t, ConnValue{Tuple: tuple4}, hex4+" 00000000 00000000") })
	t.Run("conn with a former one", func(t *testing.T) {
		sameBytes(t, ConnValue{HasFormer: true}, hexNone48+" 00000000 =00000001")
		sameBytes(t, ConnValue{HasFormer: true, Ended: 5}, hexNone48+" 00000000 =0000000b")
	})
	t.Run("former", func(t *testing.T) { sameBytes(t, FormerValue{tuple4}, hex4+" 00000000 00000000") })
	t.Run("peers", func(t *testing.T) { sameBytes(t, peers, hexPeers) })
}

type codec[T any] interface {
	*T
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}

func sameBytes[T any, P codec[T]](t *testing.T, v T, text string) {
	t.Helper()
	want := wire(t, text)
	got, err := P(&v).MarshalBinary()
	require.NoError(t, err)
	assert.Equal(t, want, got)
	var back T
	require.NoError(t, P(&back).UnmarshalBinary(want))
	assert.Equal(t, v, back)
}

// field is where C has a field, and a value that differs in that field alone.
type field struct {
	name         string
	offset, size uintptr
	value        encoding.BinaryMarshaler
}

func TestEveryFieldIsWhereCHasIt(t *testing.T) {
	four, six := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("102:304:506:708:90a:b0c:d0e:f10")
	none := netip.IPv6Unspecified()

	var c sock.SockRevskTuple
	tuples := []field{
		{"peer", unsafe.Offsetof(c.Peer), 16, Tuple{Peer: netip.AddrPortFrom(six, 0)}},
		{"service", unsafe.Offsetof(c.Service), 16, Tuple{Service: netip.AddrPortFrom(six, 0)}},
		{"peer, IPv4", unsafe.Offsetof(c.Peer) + 10, 6, Tuple{Peer: netip.AddrPortFrom(four, 0)}},
		{"service, IPv4", unsafe.Offsetof(c.Service) + 10, 6, Tuple{Service: netip.AddrPortFrom(four, 0)}},
		{"peer_port", unsafe.Offsetof(c.PeerPort), 2, Tuple{Peer: netip.AddrPortFrom(none, 0x1234)}},
		{"service_port", unsafe.Offsetof(c.ServicePort), 2, Tuple{Service: netip.AddrPortFrom(none, 0x1234)}},
		{"rev_nat_index", unsafe.Offsetof(c.RevNatIndex), 2, Tuple{RevNATIndex: 0x1234}},
		{"flags, migrated", unsafe.Offsetof(c.Flags), 1, Tuple{Migrated: true}},
		{"flags, overtaken", unsafe.Offsetof(c.Flags), 1, Tuple{Overtaken: true}},
		{"age", unsafe.Offsetof(c.Age), 1, Tuple{Age: 1}},
		{"backend_id", unsafe.Offsetof(c.BackendId), 4, Tuple{BackendID: 0x12345678}},
		{"time", unsafe.Offsetof(c.Time), 4, Tuple{Time: 0x12345678 * TimeUnit}},
	}
	fields(t, "tuple", unsafe.Sizeof(c), Tuple{}, tuples)

	var conn sock.SockRevskConnValue
	var former sock.SockRevskFormerValue
	var peers sock.SockRevskPeersValue
	var inConn, inFormer, inPeers []field
	for _, f := range tuples {
		tuple := f.value.(Tuple)
		inConn = append(inConn, field{f.name, unsafe.Offsetof(conn.Tuple) + f.offset, f.size, ConnValue{Tuple: tuple}})
		inFormer = append(inFormer, field{f.name, unsafe.Offsetof(former.Tuple) + f.offset, f.size, FormerValue{tuple}})
		for i := range Slots {
			var v PeersValue
			v.Slots[i] = tuple
			slot := unsafe.Offsetof(peers.Slots) + uintptr(i)*unsafe.Sizeof(peers.Slots[0])
			inPeers = append(inPeers, field{f.name, slot + f.offset, f.size, v})
		}
	}
	fields(t, "conn", unsafe.Sizeof(conn), ConnValue{}, inConn)
	b, err := ConnValue{HasFormer: true}.MarshalBinary()
	require.NoError(t, err)
	assert.EqualValues(t, 1, binary.NativeEndian.Uint32(b[unsafe.Offsetof(conn.Bits):]))
	fields(t, "former", unsafe.Sizeof(former), FormerValue{}, inFormer)
	assert.Len(t, peers.Slots, Slots)
	fields(t, "peers", unsafe.Sizeof(peers), PeersValue{}, append(inPeers,
		field{"table_class", unsafe.Offsetof(peers.TableClass), 1, PeersValue{TableClass: 1}},
		field{"table_maps", unsafe.Offsetof(peers.TableMaps), 2, PeersValue{TableMaps: 0x1234}},
		field{"table_count", unsafe.Offsetof(peers.TableCount), 2, PeersValue{TableCount: 0x1234}},
		field{"table_version", unsafe.Offsetof(peers.TableVersion), 4, PeersValue{TableVersion: 0x12345678}},
		field{"slots_tried", unsafe.Offsetof(peers.SlotsTried), 1, PeersValue{SlotsTried: 2}},
		field{"has_conn", unsafe.Offsetof(peers.HasConn), 1, PeersValue{HasConn: true}},
	))
}

// fields checks that each value differs from the zero one in the bytes of its field, and in no
// others.
func fields(t *testing.T, what string, size uintptr, none encoding.BinaryMarshaler, all []field) {
	t.Helper()
	empty, err := none.MarshalBinary()
	require.NoError(t, err)
	assert.Equal(t, make([]byte, size), empty, what)
	for _, f := range all {
		b, err := f.value.MarshalBinary()
		require.NoError(t, err, "%s: %s", what, f.name)
		require.Len(t, b, int(size), "%s: %s", what, f.name)
		first := slices.IndexFunc(b, func(c byte) bool { return c != 0 })
		last := len(b) - 1
		for b[last] == 0 {
			last--
		}
		assert.EqualValues(t, f.offset, first, "%s: first byte of %s", what, f.name)
		assert.EqualValues(t, f.offset+f.size-1, last, "%s: last byte of %s", what, f.name)
	}
}

// The programs of bpf/sock are what the maps are created from.
func TestSizesAreThoseOfTheMaps(t *testing.T) {
	spec, err := sock.LoadSock()
	require.NoError(t, err)
	assert.EqualValues(t, ConnValueSize, spec.Maps[sock.SockMapRevskConn].ValueSize)
	assert.EqualValues(t, FormerValueSize, spec.Maps[sock.SockMapRevskFormer].ValueSize)
	assert.EqualValues(t, PeersValueSize, spec.Maps[sock.SockMapRevskPeers].ValueSize)
	for _, m := range TableMaps() {
		require.Contains(t, spec.Maps, m.Name)
		assert.EqualValues(t, m.ValueSize, spec.Maps[m.Name].ValueSize, m.Name)
	}
	assert.EqualValues(t, 56, unsafe.Offsetof(sock.SockRevskTable8kValue{}.Tuples))
	assert.Len(t, sock.SockRevskTable8kValue{}.Tuples, TableMap{Class: TableClasses}.Tuples())
	assert.Len(t, sock.SockRevskTable512Value{}.Tuples, TableMap{Class: 1}.Tuples())
}

func TestTablesLeave4KBOfOptmem(t *testing.T) {
	for _, v := range []struct{ optmem, class, maps int }{
		{0, 0, 0}, {5311, 0, 0}, {5312, 1, 0}, {8896, 4, 0}, {12631, 4, 0}, {12632, 5, 1},
		{20463, 5, 1}, {20464, 5, 2}, {20480, 5, 2}, {131072, 5, 16}, {1 << 30, 5, 16},
	} {
		class, maps := TableLimits(v.optmem)
		assert.Equal(t, [2]int{v.class, v.maps}, [2]int{class, maps}, "optmem_max %d", v.optmem)
	}
}
