// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// SkipLBKey is a key of cilium_skip_lb{4,6}: a network namespace whose
// connections to a service with [FlagLocalRedirect] are left alone. 16 bytes
// for IPv4, 32 for IPv6. The value is a uint8 without meaning.
type SkipLBKey struct {
	// NetnsCookie is the cookie of the network namespace, as of
	// SO_NETNS_COOKIE.
	NetnsCookie uint64
	// AddrPort is the address of the service.
	AddrPort netip.AddrPort
}

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (k SkipLBKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k SkipLBKey) encode(order byteOrder) ([]byte, error) {
	return encode("skip entry", order, func(w *writer) {
		w.host64(k.NetnsCookie)
		w.addr(k.AddrPort.Addr())
		if k.AddrPort.Addr().Is6() {
			w.pad(4)
		}
		w.net16(k.AddrPort.Port())
		w.pad(2)
	})
}

// UnmarshalBinary reads a key from the map of either family.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (k *SkipLBKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *SkipLBKey) decode(order byteOrder, data []byte) error {
	return decode("skip entry", order, data, k, func(r *reader) (v SkipLBKey) {
		v.NetnsCookie = r.host64()
		addr := r.addr(addrSize(len(data), SkipLBKey6Size))
		if addr.Is6() {
			r.pad(4)
		}
		v.AddrPort = netip.AddrPortFrom(addr, r.net16())
		r.pad(2)
		return v
	}, SkipLBKey4Size, SkipLBKey6Size)
}

// AddSkipLB leaves connections from a network namespace to a service with
// [FlagLocalRedirect] alone.
//
// Returns an error wrapping [ErrNoMap], [ErrFamily] or [ErrFull].
func (t *Tables) AddSkipLB(netnsCookie uint64, service netip.AddrPort) error {
	name, m := t.skipLB(service)
	return put(name, m, SkipLBKey{netnsCookie, service}, present)
}

// RemoveSkipLB undoes [Tables.AddSkipLB].
//
// Returns an error wrapping [ErrNoMap], [ErrFamily] or [ErrNotFound].
func (t *Tables) RemoveSkipLB(netnsCookie uint64, service netip.AddrPort) error {
	name, m := t.skipLB(service)
	return remove(name, m, SkipLBKey{netnsCookie, service})
}

func (t *Tables) skipLB(service netip.AddrPort) (string, *ebpf.Map) {
	if service.Addr().Is6() {
		return SkipLB6Map, t.SkipLB6
	}
	return SkipLB4Map, t.SkipLB4
}

// SkipLBs returns the entries of those of cilium_skip_lb4 and cilium_skip_lb6
// that are there, sorted by service and network namespace.
func (t *Tables) SkipLBs() ([]SkipLBKey, error) {
	var all []SkipLBKey
	for name, m := range t.each(SkipLB4Map, SkipLB6Map) {
		keys, err := readKeys[SkipLBKey](name, m)
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
	slices.SortFunc(all, func(a, b SkipLBKey) int {
		return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(a.NetnsCookie, b.NetnsCookie))
	})
	return all, nil
}
