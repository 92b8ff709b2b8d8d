// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Sizes in bytes of the keys and values of revsk_overflow.
const (
	OverflowKeySize   = 32
	OverflowValueSize = 88
)

// OverflowKey is a key of revsk_overflow (struct revsk_overflow_key).
type OverflowKey struct {
	// Cookie is the socket's, as of SO_COOKIE.
	Cookie uint64
	// Peer is that of the tuple.
	Peer netip.AddrPort
}

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [lbmap.ErrFamily].
func (k OverflowKey) MarshalBinary() ([]byte, error) {
	return encode("key of revsk_overflow", OverflowKeySize, func(b []byte) error {
		binary.NativeEndian.PutUint64(b[0:8], k.Cookie)
		return putEndpoint(b[8:24], b[24:26], k.Peer)
	})
}

// UnmarshalBinary reads a key of revsk_overflow. After an error k is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength] or [lbmap.ErrPadding].
func (k *OverflowKey) UnmarshalBinary(data []byte) error {
	return decode("key of revsk_overflow", OverflowKeySize, data, k, func(k *OverflowKey, b []byte) error {
		k.Cookie = binary.NativeEndian.Uint64(b[0:8])
		k.Peer = getEndpoint(b[8:24], b[24:26])
		return zero(b[26:32])
	})
}

// OverflowValue is a value of revsk_overflow (struct revsk_overflow_value). The hooks replace a
// tuple as a whole but change the links in place: who reads the map beside them can rely on Tuple
// only.
type OverflowValue struct {
	Tuple Tuple
	// Next and Prev are the peers of the neighbours in the socket's chain. Port 0: there is none.
	Next, Prev netip.AddrPort
}

// MarshalBinary returns the value as it is in the map. It returns the errors of
// [Tuple.MarshalBinary].
func (v OverflowValue) MarshalBinary() ([]byte, error) {
	return encode("value of revsk_overflow", OverflowValueSize, func(b []byte) error {
		if err := v.Tuple.put(b[:TupleSize]); err != nil {
			return err
		}
		if err := putEndpoint(b[48:64], b[80:82], v.Next); err != nil {
			return fmt.Errorf("next: %w", err)
		}
		if err := putEndpoint(b[64:80], b[82:84], v.Prev); err != nil {
			return fmt.Errorf("previous: %w", err)
		}
		return nil
	})
}

// UnmarshalBinary reads a value of revsk_overflow. After an error v is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], [lbmap.ErrPadding] or [lbmap.ErrInvalid].
func (v *OverflowValue) UnmarshalBinary(data []byte) error {
	return decode("value of revsk_overflow", OverflowValueSize, data, v, func(v *OverflowValue, b []byte) error {
		if err := v.Tuple.get(b[:TupleSize]); err != nil {
			return err
		}
		v.Next = getEndpoint(b[48:64], b[80:82])
		v.Prev = getEndpoint(b[64:80], b[82:84])
		return zero(b[84:88])
	})
}
