// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

func TestAnotherLengthIsRefused(t *testing.T) {
	for _, v := range []struct {
		size int
		into encoding.BinaryUnmarshaler
	}{
		{TupleSize, &Tuple{}},
		{ConnValueSize, &ConnValue{}},
		{FormerValueSize, &FormerValue{}},
		{PeersValueSize, &PeersValue{}},
	} {
		for _, n := range []int{0, v.size - 1, v.size + 1} {
			err := v.into.UnmarshalBinary(make([]byte, n))
			assert.ErrorIs(t, err, lbmap.ErrLength, "%T of %d bytes", v.into, n)
		}
		assert.NoError(t, v.into.UnmarshalBinary(make([]byte, v.size)), "%T", v.into)
	}
}

func TestATableWithPartOfATupleIsRefused(t *testing.T) {
	for _, n := range []int{1, TupleSize - 1, TupleSize + 1} {
		_, err := DecodeTable(make([]byte, n))
		assert.ErrorIs(t, err, lbmap.ErrLength, "%d bytes", n)
	}
	tuples, err := DecodeTable(make([]byte, 2*TupleSize))
	assert.NoError(t, err)
	assert.Empty(t, tuples, "free places")
}

func TestALockOrPaddingThatIsNotZeroIsRefused(t *testing.T) {
	for _, v := range []struct {
		size, from, to int
		into           encoding.BinaryUnmarshaler
	}{
		{ConnValueSize, 48, 52, &ConnValue{}},
		{FormerValueSize, 48, 56, &FormerValue{}},
		{PeersValueSize, 0, 4, &PeersValue{}},
		{PeersValueSize, 159, 184, &PeersValue{}},
	} {
		for i := v.from; i < v.to; i++ {
			b := make([]byte, v.size)
			b[i] = 1
			assert.ErrorIs(t, v.into.UnmarshalBinary(b), lbmap.ErrPadding, "%T: byte %d", v.into, i)
		}
	}
}

func TestAnUnknownFlagIsRefused(t *testing.T) {
	for bit := range 8 {
		b := make([]byte, TupleSize)
		b[38] = 1 << bit
		before := Tuple{BackendID: 5}
		got := before
		err := got.UnmarshalBinary(b)
		if bit < 3 {
			assert.NoError(t, err, "bit %d", bit)
			continue
		}
		assert.ErrorIs(t, err, lbmap.ErrInvalid, "bit %d", bit)
		assert.Equal(t, before, got, "nothing is decoded after an error")
	}
}

func TestAFlagThatIsNeitherSetNorClearIsRefused(t *testing.T) {
	b := make([]byte, PeersValueSize)
	b[6] = 2
	assert.ErrorIs(t, new(PeersValue).UnmarshalBinary(b), lbmap.ErrInvalid)
}

func TestAnAddressWithoutAFormInTheMapIsRefused(t *testing.T) {
	for name, ep := range map[string]netip.AddrPort{
		"v4-mapped":         netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"),
		"zone":              netip.MustParseAddrPort("[fe80::1%eth0]:80"),
		"port, no address ": netip.AddrPortFrom(netip.Addr{}, 80),
	} {
		for i, v := range []encoding.BinaryMarshaler{
			Tuple{Peer: ep},
			Tuple{Service: ep},
			ConnValue{Tuple: Tuple{Peer: ep}},
			FormerValue{Tuple{Peer: ep}},
			PeersValue{Slots: [Slots]Tuple{2: {Service: ep}}},
		} {
			_, err := v.MarshalBinary()
			assert.ErrorIs(t, err, lbmap.ErrFamily, "%s: %d, %T", name, i, v)
		}
	}
}

func TestATimeThatIsNotANumberOfUnitsIsRefused(t *testing.T) {
	for _, d := range []time.Duration{-TimeUnit, time.Second, 1 << 32 * TimeUnit} {
		_, err := Tuple{Time: d}.MarshalBinary()
		assert.ErrorIs(t, err, lbmap.ErrInvalid, d)
	}
}

func TestTuplesLeavesOutFreeSlots(t *testing.T) {
	assert.Empty(t, PeersValue{}.Tuples())
	assert.Equal(t, []Tuple{tuple4, tuple6}, peers.Tuples())
}

func FuzzTuple(f *testing.F) { roundTrip[Tuple](f, tuple4, tuple6, Tuple{}) }
func FuzzConnValue(f *testing.F) {
	roundTrip[ConnValue](f, ConnValue{Tuple: tuple4}, ConnValue{Tuple: tuple6, HasFormer: true, Ended: 1<<31 - 1})
}
func FuzzFormerValue(f *testing.F) {
	roundTrip[FormerValue](f, FormerValue{tuple4}, FormerValue{tuple6})
}
func FuzzPeersValue(f *testing.F) { roundTrip[PeersValue](f, peers, PeersValue{}) }

// roundTrip checks that nothing panics, and that what decodes encodes to the same bytes.
func roundTrip[T any, P codec[T]](f *testing.F, seeds ...T) {
	for _, v := range seeds {
		b, err := P(&v).MarshalBinary()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v T
		if P(&v).UnmarshalBinary(data) != nil {
			return
		}
		b, err := P(&v).MarshalBinary()
		require.NoError(t, err, fmt.Sprintf("%+v", v))
		assert.Equal(t, data, b)
	})
}
