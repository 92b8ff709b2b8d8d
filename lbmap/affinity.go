// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// AffinityKey is a key of cilium_lb{4,6}_affinity: a client and a service. 16
// bytes for IPv4, 24 for IPv6.
//
// The client is either an address (seen by programs that handle packets) or a
// network namespace (seen by the socket hooks).
type AffinityKey struct {
	// Client is the client's address. It is the zero Addr if the client is the
	// namespace NetnsCookie.
	Client netip.Addr
	// NetnsCookie is the client's network namespace. It must be 0 if Client is
	// an address.
	NetnsCookie uint64
	// IPv6 says which family's map a NetnsCookie is for. It must be false if
	// Client is an address.
	IPv6 bool
	// RevNat is the reverse-NAT index of the service.
	RevNat uint16
}

// affinityByNetns is the flag that says which kind of client a key has.
const affinityByNetns = 1

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [ErrFamily], or [ErrInvalid] for a key with two
// kinds of client.
func (k AffinityKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k AffinityKey) encode(order byteOrder) ([]byte, error) {
	return encode("affinity key", order, func(w *writer) {
		var flags uint8
		switch {
		case !k.Client.IsValid():
			flags = affinityByNetns
			w.host64(k.NetnsCookie)
			if k.IPv6 {
				w.pad(8)
			}
		case k.NetnsCookie != 0 || k.IPv6:
			w.fail(fmt.Errorf("client %v and a network namespace: %w", k.Client, ErrInvalid))
		default:
			w.addr(k.Client)
			if k.Client.Is4() {
				w.pad(4)
			}
		}
		w.net16(k.RevNat)
		w.u8(flags)
		w.pad(5)
	})
}

// UnmarshalBinary reads a key from the map of either family.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (k *AffinityKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *AffinityKey) decode(order byteOrder, data []byte) error {
	return decode("affinity key", order, data, k, func(r *reader) (v AffinityKey) {
		v6 := len(data) == AffinityKey6Size
		clientSize := len(data) - 8
		client := reader{order: order, buf: r.take(clientSize)}
		v.RevNat = r.net16()
		flags := r.u8()
		r.pad(5)

		switch {
		case flags&^affinityByNetns != 0:
			r.fail(ErrPadding)
		case flags == affinityByNetns:
			v.NetnsCookie = client.host64()
			v.IPv6 = v6
		default:
			v.Client = client.addr(addrSize(len(data), AffinityKey6Size))
		}
		client.pad(len(client.buf))
		r.fail(client.err)
		return v
	}, AffinityKey4Size, AffinityKey6Size)
}

// AffinityValue is a value of cilium_lb{4,6}_affinity: 16 bytes in both
// families.
type AffinityValue struct {
	// LastUsed is the time of the last connection on the clock of the programs
	// that wrote it: seconds since boot, or 256 jiffies each where Cilium is
	// configured to count in jiffies.
	LastUsed  uint64
	BackendID uint32
}

// MarshalBinary returns the value as it is in the map.
func (v AffinityValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v AffinityValue) encode(order byteOrder) ([]byte, error) {
	return encode("affinity value", order, func(w *writer) {
		w.host64(v.LastUsed)
		w.host32(v.BackendID)
		w.pad(4)
	})
}

// UnmarshalBinary reads a value from the map of either family.
//
// Returns an error wrapping [ErrLength] or [ErrPadding].
func (v *AffinityValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *AffinityValue) decode(order byteOrder, data []byte) error {
	return decode("affinity value", order, data, v, func(r *reader) (v AffinityValue) {
		v.LastUsed = r.host64()
		v.BackendID = r.host32()
		r.pad(4)
		return v
	}, AffinityValueSize)
}

// AffinityMatchKey is a key of cilium_lb_affinity_match, 8 bytes: a backend
// that clients of a service with session affinity may keep. The value is a
// uint8 without meaning.
type AffinityMatchKey struct {
	BackendID uint32
	RevNat    uint16
}

// MarshalBinary returns the key as it is in the map.
func (k AffinityMatchKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k AffinityMatchKey) encode(order byteOrder) ([]byte, error) {
	return encode("affinity match", order, func(w *writer) {
		w.host32(k.BackendID)
		w.net16(k.RevNat)
		w.pad(2)
	})
}

// UnmarshalBinary reads a key from the map.
//
// Returns an error wrapping [ErrLength] or [ErrPadding].
func (k *AffinityMatchKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *AffinityMatchKey) decode(order byteOrder, data []byte) error {
	return decode("affinity match", order, data, k, func(r *reader) (v AffinityMatchKey) {
		v.BackendID = r.host32()
		v.RevNat = r.net16()
		r.pad(2)
		return v
	}, AffinityMatchKeySize)
}

// AddAffinityMatch allows clients of the service with this reverse-NAT index to
// keep this backend. [Writer.Upsert] does so for services with
// [FlagAffinity].
//
// Returns an error wrapping [ErrNoMap] or [ErrFull].
func (t *Tables) AddAffinityMatch(backendID uint32, revNat uint16) error {
	return put(AffinityMatchMap, t.AffinityMatch, AffinityMatchKey{backendID, revNat}, present)
}

// RemoveAffinityMatch undoes [Tables.AddAffinityMatch].
//
// Returns an error wrapping [ErrNoMap] or [ErrNotFound].
func (t *Tables) RemoveAffinityMatch(backendID uint32, revNat uint16) error {
	return remove(AffinityMatchMap, t.AffinityMatch, AffinityMatchKey{backendID, revNat})
}

// AffinityMatches returns the entries of cilium_lb_affinity_match, sorted by
// reverse-NAT index and backend.
//
// Returns an error wrapping [ErrNoMap].
func (t *Tables) AffinityMatches() ([]AffinityMatchKey, error) {
	keys, err := readKeys[AffinityMatchKey](AffinityMatchMap, t.AffinityMatch)
	slices.SortFunc(keys, func(a, b AffinityMatchKey) int {
		return cmp.Or(cmp.Compare(a.RevNat, b.RevNat), cmp.Compare(a.BackendID, b.BackendID))
	})
	return keys, err
}
