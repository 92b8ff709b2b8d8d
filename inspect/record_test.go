// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// recordOf is a record as the programs write it.
func recordOf(t testing.TB, tuples ...revnat.Tuple) record {
	t.Helper()
	r := make(record, socketSize)
	binary.NativeEndian.PutUint64(r[idAt:], 0xffff888001234000)
	binary.NativeEndian.PutUint64(r[cookieAt:], 7)
	binary.NativeEndian.PutUint64(r[inodeAt:], 8)
	binary.NativeEndian.PutUint64(r[netnsCookieAt:], 9)
	binary.NativeEndian.PutUint32(r[netnsInodeAt:], 4026531840)
	binary.NativeEndian.PutUint16(r[tuplesAt:], uint16(len(tuples)))
	binary.NativeEndian.PutUint16(r[protocolAt:], uint16(lbmap.ProtocolUDP))
	binary.NativeEndian.PutUint16(r[localPortAt:], 40000)
	binary.BigEndian.PutUint16(r[peerPortAt:], 5353)
	r[familyAt], r[stateAt] = byte(IPv4), byte(StateEstablished)
	local, peer := netip.MustParseAddr("10.0.0.1").As16(), netip.MustParseAddr("10.0.1.1").As16()
	copy(r[localAt:], local[:])
	copy(r[peerAt:], peer[:])
	for _, tuple := range tuples {
		b, err := tuple.MarshalBinary()
		require.NoError(t, err)
		r = append(r, b...)
	}
	return r
}

func tupleTo(peer string) revnat.Tuple {
	return revnat.Tuple{Peer: netip.MustParseAddrPort(peer), Service: netip.MustParseAddrPort("10.96.0.1:53"), RevNATIndex: 1}
}

func TestARecordIsASocketWithItsTuplesInOrder(t *testing.T) {
	conn, former := tupleTo("10.0.1.1:5353"), tupleTo("10.0.1.2:5353")
	a, b := tupleTo("10.0.1.3:5353"), tupleTo("10.0.1.4:5353")
	s, err := recordOf(t, conn, former, b, revnat.Tuple{}, a).whole(nil)
	require.NoError(t, err)
	assert.Equal(t, Socket{
		Protocol: lbmap.ProtocolUDP, Family: IPv4, State: StateEstablished,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Peer: netip.MustParseAddrPort("10.0.1.1:5353"),
		NetNS: NetNS{Inode: 4026531840, Cookie: 9}, Cookie: 7, Inode: 8,
		Conn: &conn, Former: &former, Peers: []revnat.Tuple{a, b},
	}, s)

	s, err = recordOf(t, revnat.Tuple{}, revnat.Tuple{}, revnat.Tuple{}).whole(nil)
	require.NoError(t, err)
	assert.Nil(t, s.Conn)
	assert.Nil(t, s.Former)
	assert.Empty(t, s.Peers)

	part := recordOf(t, conn)
	binary.NativeEndian.PutUint16(part[tuplesAt:], 1|subflow)
	s, err = part.whole(nil)
	require.NoError(t, err)
	assert.True(t, s.Subflow)
	assert.Equal(t, &conn, s.Conn)

	broken := recordOf(t, conn)
	broken[socketSize+38] = 0x80 // a flag that nobody knows
	_, err = broken.whole(nil)
	assert.ErrorIs(t, err, lbmap.ErrInvalid)
}

func BenchmarkDecode(b *testing.B) {
	for name, tuples := range map[string][]revnat.Tuple{
		"connected": {tupleTo("10.0.1.1:5353")},
		"3 peers":   {{}, {}, tupleTo("10.0.1.1:5353"), tupleTo("10.0.1.2:5353"), tupleTo("10.0.1.3:5353")},
	} {
		b.Run(name, func(b *testing.B) {
			r := recordOf(b, tuples...)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.whole(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	s, err := recordOf(b, tupleTo("10.0.1.1:5353")).whole(nil)
	require.NoError(b, err)
	var many []Backend
	for i := range 5000 {
		many = append(many, Backend{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 80), lbmap.ProtocolUDP})
	}
	for name, f := range map[string]Filter{
		"1 backend":      {Connected: true, Backends: NewBackendSet(many[:1]...)},
		"5,000 backends": {Connected: true, Backends: NewBackendSet(many...)},
		"service":        {Service: ServiceFilter{AddrPort: netip.MustParseAddrPort("10.96.0.1:54")}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if f.wants(&s) {
					b.Fatal("it is wanted")
				}
			}
		})
	}
}
