// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"net/netip"

	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// hashKey is a key of the hash of either family: as it is in the map of IPv6, with IPv4 as v4-mapped. It is
// plain memory, which makes it a fast key of Go maps, too.
type hashKey struct {
	Cookie uint64
	Addr   [16]byte // of the backend
	Port   uint16   // network byte order
	Pad    [6]byte  // zeroes
}

// hashValue is a value of the hash, as it is in the map of IPv6, with IPv4 as v4-mapped.
type hashValue struct {
	Addr   [16]byte // of the service
	Port   uint16   // network byte order
	RevNat uint16   // network byte order
}

// The map of IPv4.
type (
	hashKey4 struct {
		Cookie uint64
		Addr   [4]byte
		Port   uint16
		Pad    uint16
	}
	hashValue4 struct {
		Addr   [4]byte
		Port   uint16
		RevNat uint16
	}
)

// is4 tells which map has the key.
func (k *hashKey) is4() bool { return [12]byte(k.Addr[:12]) == mapped }

var mapped = [12]byte{10: 0xff, 11: 0xff}

func mapped4(addr [4]byte) (a [16]byte) {
	a[10], a[11] = 0xff, 0xff
	copy(a[12:], addr[:])
	return a
}

func (k *hashKey) v4() hashKey4 {
	return hashKey4{Cookie: k.Cookie, Addr: [4]byte(k.Addr[12:]), Port: k.Port}
}

func (k *hashKey4) key() hashKey {
	return hashKey{Cookie: k.Cookie, Addr: mapped4(k.Addr), Port: k.Port}
}

// v4 is of an entry whose key is in the map of IPv4; so is its service then.
func (v *hashValue) v4() hashValue4 {
	return hashValue4{Addr: [4]byte(v.Addr[12:]), Port: v.Port, RevNat: v.RevNat}
}

func (v *hashValue4) value() hashValue {
	return hashValue{Addr: mapped4(v.Addr), Port: v.Port, RevNat: v.RevNat}
}

func (k *hashKey) backend() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(k.Addr).Unmap(), byteorder.Net16(k.Port))
}

func (v *hashValue) service() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(v.Addr).Unmap(), byteorder.Net16(v.Port))
}

func (k *hashKey) exported() lbmap.ReverseSKKey {
	return lbmap.ReverseSKKey{Cookie: k.Cookie, Backend: k.backend()}
}

func (v *hashValue) exported() lbmap.ReverseSKValue {
	return lbmap.ReverseSKValue{Service: v.service(), RevNat: byteorder.Net16(v.RevNat)}
}

// keyFor is the key of the entry that a socket has for a backend.
func keyFor(cookie uint64, backend netip.AddrPort) hashKey {
	return hashKey{Cookie: cookie, Addr: backend.Addr().As16(), Port: byteorder.Net16(backend.Port())}
}

// ofTuple is the entry that the hash would have of a tuple.
func ofTuple(cookie uint64, t *revnat.Tuple) (hashKey, hashValue) {
	return keyFor(cookie, t.Peer),
		hashValue{Addr: t.Service.Addr().As16(), Port: byteorder.Net16(t.Service.Port()), RevNat: byteorder.Net16(t.RevNATIndex)}
}
