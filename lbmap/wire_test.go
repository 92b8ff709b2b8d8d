// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	require.NoError(t, err)
	return b
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// codec is the pointer to a key or value type.
type codec[T any] interface {
	*T
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
	encode(byteOrder) ([]byte, error)
	decode(byteOrder, []byte) error
}

// layout is a key or value and its bytes on hosts of either byte order. The
// bytes are grouped by field. No two bytes of numbers are the same, so that
// swapped bytes and fields show.
type layout struct {
	name        string
	little, big string
	test        func(t *testing.T, little, big []byte)
}

func layoutOf[T any, P codec[T]](name string, v T, little, big string) layout {
	return layout{name, little, big, func(t *testing.T, little, big []byte) {
		for _, order := range []struct {
			byteOrder
			bytes []byte
		}{{binary.LittleEndian, little}, {binary.BigEndian, big}} {
			got, err := P(&v).encode(order)
			require.NoError(t, err)
			assert.Equal(t, hex.EncodeToString(order.bytes), hex.EncodeToString(got), order.String())
			var back T
			require.NoError(t, P(&back).decode(order, order.bytes))
			assert.Equal(t, v, back, order.String())
		}

		native := little
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			native = big
		}
		got, err := P(&v).MarshalBinary()
		require.NoError(t, err)
		assert.Equal(t, hex.EncodeToString(native), hex.EncodeToString(got))
		var back T
		require.NoError(t, P(&back).UnmarshalBinary(native))
		assert.Equal(t, v, back)

		for _, wrong := range [][]byte{nil, {}, native[:len(native)-1], append(slices.Clone(native), 0)} {
			into := v
			require.ErrorIs(t, P(&into).UnmarshalBinary(wrong), ErrLength)
			assert.Equal(t, v, into, "the target is unchanged after an error")
		}
	}}
}

func layouts() []layout {
	return []layout{
		layoutOf("service key, IPv4", ServiceKey{
			AddrPort: addrPort("10.1.2.3:5173"), Slot: 0x2122, Protocol: 0x31, Scope: 0x32,
		}, "0a010203 1435 2221 31 32 0000", "0a010203 1435 2122 31 32 0000"),
		layoutOf("service key, IPv6", ServiceKey{
			AddrPort: addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173"), Slot: 0x2122, Protocol: 0x31, Scope: 0x32,
		}, "fd010203040506070809 0a0b0c0d0e0f 1435 2221 31 32 0000",
			"fd010203040506070809 0a0b0c0d0e0f 1435 2122 31 32 0000"),
		layoutOf("service value", ServiceValue{
			Union: 0x01020304, Count: 0x1112, RevNat: 0x2122, Flags: 0x3231, QCount: 0x4142,
		}, "04030201 1211 2122 31 32 4241", "01020304 1112 2122 31 32 4142"),
		layoutOf("backend, IPv4", BackendValue{
			AddrPort: addrPort("10.1.2.3:5173"), Protocol: 0x21, State: 0x22, ClusterID: 0x3132, Zone: 0x41,
		}, "0a010203 1435 21 22 3231 41 00", "0a010203 1435 21 22 3132 41 00"),
		layoutOf("backend, IPv6", BackendValue{
			AddrPort: addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173"),
			Protocol: 0x21, State: 0x22, ClusterID: 0x3132, Zone: 0x41,
		}, "fd0102030405060708090a0b0c0d0e0f 1435 21 22 3231 41 00",
			"fd0102030405060708090a0b0c0d0e0f 1435 21 22 3132 41 00"),
		layoutOf("reverse-NAT key", RevNatKey(0x0102), "0102", "0102"),
		layoutOf("reverse-NAT value, IPv4", RevNatValue{addrPort("10.1.2.3:5173")},
			"0a010203 1435", "0a010203 1435"),
		layoutOf("reverse-NAT value, IPv6", RevNatValue{addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173")},
			"fd0102030405060708090a0b0c0d0e0f 1435", "fd0102030405060708090a0b0c0d0e0f 1435"),
		layoutOf("reverse socket key, IPv4", ReverseSKKey{
			Cookie: 0x6162636465666768, Backend: addrPort("10.1.2.3:5173"),
		}, "6867666564636261 0a010203 1435 0000", "6162636465666768 0a010203 1435 0000"),
		layoutOf("reverse socket key, IPv6", ReverseSKKey{
			Cookie: 0x6162636465666768, Backend: addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173"),
		}, "6867666564636261 fd0102030405060708090a0b0c0d0e0f 1435 000000000000",
			"6162636465666768 fd0102030405060708090a0b0c0d0e0f 1435 000000000000"),
		layoutOf("reverse socket value, IPv4", ReverseSKValue{
			Service: addrPort("10.1.2.3:5173"), RevNat: 0x2122,
		}, "0a010203 1435 2122", "0a010203 1435 2122"),
		layoutOf("reverse socket value, IPv6", ReverseSKValue{
			Service: addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173"), RevNat: 0x2122,
		}, "fd0102030405060708090a0b0c0d0e0f 1435 2122", "fd0102030405060708090a0b0c0d0e0f 1435 2122"),
		layoutOf("affinity key, IPv4 address", AffinityKey{
			Client: netip.MustParseAddr("10.1.2.3"), RevNat: 0x2122,
		}, "0a010203 00000000 2122 00 00 00000000", "0a010203 00000000 2122 00 00 00000000"),
		layoutOf("affinity key, IPv4 namespace", AffinityKey{
			NetnsCookie: 0x6162636465666768, RevNat: 0x2122,
		}, "6867666564636261 2122 01 00 00000000", "6162636465666768 2122 01 00 00000000"),
		layoutOf("affinity key, IPv6 address", AffinityKey{
			Client: netip.MustParseAddr("fd01:203:405:607:809:a0b:c0d:e0f"), RevNat: 0x2122,
		}, "fd0102030405060708090a0b0c0d0e0f 2122 00 00 00000000",
			"fd0102030405060708090a0b0c0d0e0f 2122 00 00 00000000"),
		layoutOf("affinity key, IPv6 namespace", AffinityKey{
			NetnsCookie: 0x6162636465666768, IPv6: true, RevNat: 0x2122,
		}, "6867666564636261 0000000000000000 2122 01 00 00000000",
			"6162636465666768 0000000000000000 2122 01 00 00000000"),
		layoutOf("affinity value", AffinityValue{
			LastUsed: 0x6162636465666768, BackendID: 0x01020304,
		}, "6867666564636261 04030201 00000000", "6162636465666768 01020304 00000000"),
		layoutOf("affinity match", AffinityMatchKey{
			BackendID: 0x01020304, RevNat: 0x2122,
		}, "04030201 2122 0000", "01020304 2122 0000"),
		layoutOf("skip entry, IPv4", SkipLBKey{
			NetnsCookie: 0x6162636465666768, AddrPort: addrPort("10.1.2.3:5173"),
		}, "6867666564636261 0a010203 1435 0000", "6162636465666768 0a010203 1435 0000"),
		layoutOf("skip entry, IPv6", SkipLBKey{
			NetnsCookie: 0x6162636465666768, AddrPort: addrPort("[fd01:203:405:607:809:a0b:c0d:e0f]:5173"),
		}, "6867666564636261 fd0102030405060708090a0b0c0d0e0f 00000000 1435 0000",
			"6162636465666768 fd0102030405060708090a0b0c0d0e0f 00000000 1435 0000"),
		layoutOf("ipcache key, IPv4", IPCacheKey{
			Prefix: netip.MustParsePrefix("10.1.2.3/27"), ClusterID: 0x2122,
		}, "3b000000 2221 00 01 0a010203 000000000000000000000000",
			"0000003b 2122 00 01 0a010203 000000000000000000000000"),
		layoutOf("ipcache key, IPv6", IPCacheKey{
			Prefix: netip.MustParsePrefix("fd01:203:405:607:809:a0b:c0d:e0f/127"), ClusterID: 0x2122,
		}, "9f000000 2221 00 02 fd0102030405060708090a0b0c0d0e0f",
			"0000009f 2122 00 02 fd0102030405060708090a0b0c0d0e0f"),
		layoutOf("ipcache value, no tunnel", IPCacheValue{
			Identity: 0x01020304, Key: 0x31, Flags: IPCacheRemoteCluster,
		}, "04030201 00000000000000000000000000000000 0000 31 08",
			"01020304 00000000000000000000000000000000 0000 31 08"),
		layoutOf("ipcache value, IPv4 tunnel", IPCacheValue{
			Identity: 0x01020304, Tunnel: netip.MustParseAddr("10.1.2.3"), Key: 0x31,
			Flags: IPCacheSkipTunnel | IPCacheHasTunnel,
		}, "04030201 0a010203000000000000000000000000 0000 31 03",
			"01020304 0a010203000000000000000000000000 0000 31 03"),
		layoutOf("ipcache value, IPv6 tunnel", IPCacheValue{
			Identity: 0x01020304, Tunnel: netip.MustParseAddr("fd01:203:405:607:809:a0b:c0d:e0f"), Key: 0x31,
			Flags: IPCacheHasTunnel | IPCacheIPv6Tunnel,
		}, "04030201 fd0102030405060708090a0b0c0d0e0f 0000 31 06",
			"01020304 fd0102030405060708090a0b0c0d0e0f 0000 31 06"),
	}
}

func TestEveryTypeHasTheLayoutOfItsMap(t *testing.T) {
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) { l.test(t, unhex(t, l.little), unhex(t, l.big)) })
	}
}

func TestSizesAreThoseOfTheMaps(t *testing.T) {
	sizes := map[string][2]uint32{
		"cilium_lb4_services_v2":   {12, 12},
		"cilium_lb6_services_v2":   {24, 12},
		"cilium_lb4_backends_v3":   {4, 12},
		"cilium_lb6_backends_v3":   {4, 24},
		"cilium_lb4_reverse_nat":   {2, 6},
		"cilium_lb6_reverse_nat":   {2, 18},
		"cilium_lb4_affinity":      {16, 16},
		"cilium_lb6_affinity":      {24, 16},
		"cilium_lb_affinity_match": {8, 1},
		"cilium_skip_lb4":          {16, 1},
		"cilium_skip_lb6":          {32, 1},
		"cilium_lb4_reverse_sk":    {16, 8},
		"cilium_lb6_reverse_sk":    {32, 20},
		"cilium_ipcache_v2":        {24, 24},
		"cilium_metrics":           {8, 16},
	}
	for name, want := range sizes {
		spec := MapSpec(name)
		require.NotNil(t, spec, name)
		assert.Equal(t, want, [2]uint32{spec.KeySize, spec.ValueSize}, name)
	}
	assert.Nil(t, MapSpec("cilium_other"))
}

func TestPaddingThatIsNotZeroIsRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		into  encoding.BinaryUnmarshaler
		valid string
		pad   []int
	}{
		{"service key, IPv4", new(ServiceKey), strings.Repeat("00", 12), []int{10, 11}},
		{"service key, IPv6", new(ServiceKey), strings.Repeat("00", 24), []int{22, 23}},
		{"backend, IPv4", new(BackendValue), strings.Repeat("00", 12), []int{11}},
		{"backend, IPv6", new(BackendValue), strings.Repeat("00", 24), []int{23}},
		{"reverse socket key, IPv4", new(ReverseSKKey), strings.Repeat("00", 16), []int{14, 15}},
		{"reverse socket key, IPv6", new(ReverseSKKey), strings.Repeat("00", 32), []int{26, 27, 28, 29, 30, 31}},
		{"affinity key, IPv4", new(AffinityKey), strings.Repeat("00", 16), []int{4, 5, 6, 7, 11, 12, 13, 14, 15}},
		{"affinity key, IPv6", new(AffinityKey), strings.Repeat("00", 24), []int{19, 20, 21, 22, 23}},
		{
			"affinity key, IPv6 namespace", new(AffinityKey),
			strings.Repeat("00", 18) + "01" + strings.Repeat("00", 5),
			[]int{8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 23},
		},
		{"affinity value", new(AffinityValue), strings.Repeat("00", 16), []int{12, 13, 14, 15}},
		{"affinity match", new(AffinityMatchKey), strings.Repeat("00", 8), []int{6, 7}},
		{"skip entry, IPv4", new(SkipLBKey), strings.Repeat("00", 16), []int{14, 15}},
		{"skip entry, IPv6", new(SkipLBKey), strings.Repeat("00", 32), []int{24, 25, 26, 27, 30, 31}},
		{
			"ipcache value, IPv4 tunnel", new(IPCacheValue), strings.Repeat("00", 24),
			[]int{8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21},
		},
		{"ipcache value, IPv6 tunnel", new(IPCacheValue), strings.Repeat("00", 23) + "04", []int{20, 21}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := unhex(t, c.valid)
			require.NoError(t, c.into.UnmarshalBinary(data))
			for i := range data {
				data[i] |= 0x80
				err := c.into.UnmarshalBinary(data)
				if slices.Contains(c.pad, i) {
					assert.ErrorIs(t, err, ErrPadding, "byte %d", i)
				} else if !isFlagsOfAffinityKey(c.into, data, i) {
					assert.NoError(t, err, "byte %d", i)
				}
				data[i] &^= 0x80
			}
		})
	}
}

// isFlagsOfAffinityKey says whether byte i is the one with one flag and seven
// reserved bits.
func isFlagsOfAffinityKey(v encoding.BinaryUnmarshaler, data []byte, i int) bool {
	_, ok := v.(*AffinityKey)
	return ok && i == len(data)-6
}

func TestReservedBitsOfAnAffinityKeyAreRefused(t *testing.T) {
	for _, size := range []int{AffinityKey4Size, AffinityKey6Size} {
		for bit := 1; bit < 8; bit++ {
			data := make([]byte, size)
			data[size-6] = 1<<bit | 1
			require.ErrorIs(t, new(AffinityKey).UnmarshalBinary(data), ErrPadding)
		}
	}
}

func TestPaddingOfAnIPCacheKeyIsRefused(t *testing.T) {
	key, err := IPCacheKey{Prefix: netip.MustParsePrefix("10.0.0.0/8")}.MarshalBinary()
	require.NoError(t, err)
	for _, i := range []int{6, 12, 17, 23} {
		key[i] = 1
		require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key), ErrPadding)
		key[i] = 0
	}
	require.NoError(t, new(IPCacheKey).UnmarshalBinary(key))
}

func TestIPCacheKeyWithAWrongFamilyOrPrefixLengthIsRefused(t *testing.T) {
	key := func(bits uint32, family uint8) []byte {
		b := binary.NativeEndian.AppendUint32(nil, bits)
		return append(b, append([]byte{0, 0, 0, family}, make([]byte, 16)...)...)
	}
	require.NoError(t, new(IPCacheKey).UnmarshalBinary(key(32, 1)))
	require.NoError(t, new(IPCacheKey).UnmarshalBinary(key(64, 1)))
	require.NoError(t, new(IPCacheKey).UnmarshalBinary(key(160, 2)))
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(31, 1)), ErrInvalid)
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(65, 1)), ErrInvalid)
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(161, 2)), ErrInvalid)
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(1<<32-1, 2)), ErrInvalid)
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(64, 0)), ErrFamily)
	require.ErrorIs(t, new(IPCacheKey).UnmarshalBinary(key(64, 3)), ErrFamily)

	_, err := IPCacheKey{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33)}.MarshalBinary()
	require.ErrorIs(t, err, ErrInvalid)
}

func TestAddressesThatAreNeitherIPv4NorIPv6AreRefused(t *testing.T) {
	for _, addr := range []netip.Addr{
		{},
		netip.MustParseAddr("::ffff:10.0.0.1"),
		netip.MustParseAddr("fe80::1%eth0"),
	} {
		ap := netip.AddrPortFrom(addr, 80)
		for _, v := range []encoding.BinaryMarshaler{
			ServiceKey{AddrPort: ap}, BackendValue{AddrPort: ap}, RevNatValue{ap},
			ReverseSKKey{Backend: ap}, ReverseSKValue{Service: ap}, SkipLBKey{AddrPort: ap},
		} {
			_, err := v.MarshalBinary()
			assert.ErrorIs(t, err, ErrFamily, "%T %v", v, addr)
		}
	}
	_, err := AffinityKey{Client: netip.MustParseAddr("::ffff:10.0.0.1")}.MarshalBinary()
	require.ErrorIs(t, err, ErrFamily)
	_, err = IPCacheKey{Prefix: netip.MustParsePrefix("::ffff:10.0.0.1/128")}.MarshalBinary()
	require.ErrorIs(t, err, ErrFamily)
	_, err = IPCacheKey{}.MarshalBinary()
	require.ErrorIs(t, err, ErrFamily)

	mapped := unhex(t, "00000000000000000000ffff0a000001 0050")
	require.ErrorIs(t, new(RevNatValue).UnmarshalBinary(mapped), ErrFamily)
	require.ErrorIs(t, new(ReverseSKValue).UnmarshalBinary(append(mapped, 0, 1)), ErrFamily)
}

func TestAffinityKeyHasOneKindOfClient(t *testing.T) {
	client := netip.MustParseAddr("10.0.0.1")
	_, err := AffinityKey{Client: client, NetnsCookie: 1}.MarshalBinary()
	require.ErrorIs(t, err, ErrInvalid)
	_, err = AffinityKey{Client: client, IPv6: true}.MarshalBinary()
	require.ErrorIs(t, err, ErrInvalid)
}

func TestIPCacheTunnelFitsItsFlag(t *testing.T) {
	_, err := IPCacheValue{Tunnel: netip.MustParseAddr("fd00::1")}.MarshalBinary()
	require.ErrorIs(t, err, ErrFamily)
	_, err = IPCacheValue{Tunnel: netip.MustParseAddr("10.0.0.1"), Flags: IPCacheIPv6Tunnel}.MarshalBinary()
	require.ErrorIs(t, err, ErrFamily)
}
