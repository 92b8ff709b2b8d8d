// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"net/netip"
)

// RevNatKey is a key of cilium_lb{4,6}_reverse_nat, a reverse-NAT index: 2 bytes
// in both families.
type RevNatKey uint16

// MarshalBinary returns the key as it is in the map.
func (k RevNatKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k RevNatKey) encode(order byteOrder) ([]byte, error) {
	return encode("reverse-NAT key", order, func(w *writer) { w.net16(uint16(k)) })
}

// UnmarshalBinary reads a key from the map of either family.
//
// Returns an error wrapping [ErrLength].
func (k *RevNatKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *RevNatKey) decode(order byteOrder, data []byte) error {
	return decode("reverse-NAT key", order, data, k, func(r *reader) RevNatKey {
		return RevNatKey(r.net16())
	}, RevNatKeySize)
}

// RevNatValue is a value of cilium_lb{4,6}_reverse_nat, the address of a
// service: 6 bytes for IPv4, 18 for IPv6.
type RevNatValue struct {
	AddrPort netip.AddrPort
}

// MarshalBinary returns the value as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (v RevNatValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v RevNatValue) encode(order byteOrder) ([]byte, error) {
	return encode("reverse-NAT value", order, func(w *writer) {
		w.addr(v.AddrPort.Addr())
		w.net16(v.AddrPort.Port())
	})
}

// UnmarshalBinary reads a value from the map of either family.
//
// Returns an error wrapping [ErrLength] or [ErrFamily].
func (v *RevNatValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *RevNatValue) decode(order byteOrder, data []byte) error {
	return decode("reverse-NAT value", order, data, v, func(r *reader) RevNatValue {
		addr := r.addr(addrSize(len(data), RevNatValue6Size))
		return RevNatValue{AddrPort: netip.AddrPortFrom(addr, r.net16())}
	}, RevNatValue4Size, RevNatValue6Size)
}
