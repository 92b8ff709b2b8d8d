// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"net/netip"
)

// ReverseSKKey is a key of cilium_lb{4,6}_reverse_sk, the hash that remembers
// which service a socket meant when it was sent to a backend: 16 bytes for
// IPv4, 32 for IPv6. A v4-mapped IPv6 socket is in the IPv4 map.
type ReverseSKKey struct {
	// Cookie is the socket's cookie, as of SO_COOKIE.
	Cookie uint64
	// Backend is the address that the socket was sent to.
	Backend netip.AddrPort
}

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (k ReverseSKKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k ReverseSKKey) encode(order byteOrder) ([]byte, error) {
	return encode("reverse socket key", order, func(w *writer) {
		w.host64(k.Cookie)
		w.addr(k.Backend.Addr())
		w.net16(k.Backend.Port())
		w.pad(reverseSKPad(k.Backend.Addr().Is4()))
	})
}

// UnmarshalBinary reads a key from the map of either family.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (k *ReverseSKKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *ReverseSKKey) decode(order byteOrder, data []byte) error {
	return decode("reverse socket key", order, data, k, func(r *reader) (v ReverseSKKey) {
		v.Cookie = r.host64()
		addr := r.addr(addrSize(len(data), ReverseSKKey6Size))
		v.Backend = netip.AddrPortFrom(addr, r.net16())
		r.pad(reverseSKPad(addr.Is4()))
		return v
	}, ReverseSKKey4Size, ReverseSKKey6Size)
}

// reverseSKPad returns the number of bytes behind the port. In IPv6 the
// compiler adds four to the two of the struct, for the alignment of the cookie.
func reverseSKPad(v4 bool) int {
	if v4 {
		return 2
	}
	return 6
}

// ReverseSKValue is a value of cilium_lb{4,6}_reverse_sk: 8 bytes for IPv4, 20
// for IPv6.
type ReverseSKValue struct {
	// Service is the address that the application had asked for.
	Service netip.AddrPort
	// RevNat is the reverse-NAT index that the service had at the time.
	RevNat uint16
}

// MarshalBinary returns the value as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (v ReverseSKValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v ReverseSKValue) encode(order byteOrder) ([]byte, error) {
	return encode("reverse socket value", order, func(w *writer) {
		w.addr(v.Service.Addr())
		w.net16(v.Service.Port())
		w.net16(v.RevNat)
	})
}

// UnmarshalBinary reads a value from the map of either family.
//
// Returns an error wrapping [ErrLength] or [ErrFamily].
func (v *ReverseSKValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *ReverseSKValue) decode(order byteOrder, data []byte) error {
	return decode("reverse socket value", order, data, v, func(r *reader) (v ReverseSKValue) {
		addr := r.addr(addrSize(len(data), ReverseSKValue6Size))
		v.Service = netip.AddrPortFrom(addr, r.net16())
		v.RevNat = r.net16()
		return v
	}, ReverseSKValue4Size, ReverseSKValue6Size)
}
