// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// BackendValue is a value of cilium_lb{4,6}_backends_v3: 12 bytes for IPv4, 24
// for IPv6. The key is the backend's id, a uint32 in host byte order, which an
// [ebpf.Map] takes as it is. Control planes use an id in one family only.
type BackendValue struct {
	AddrPort netip.AddrPort
	Protocol Protocol
	State    BackendState
	// ClusterID tells apart backends with the same address in connected
	// clusters. 0 is the own one.
	ClusterID uint16
	// Zone is the id of an availability zone. 0 is none.
	Zone uint8
}

// MarshalBinary returns the value as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (v BackendValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v BackendValue) encode(order byteOrder) ([]byte, error) {
	return encode("backend", order, func(w *writer) {
		w.addr(v.AddrPort.Addr())
		w.net16(v.AddrPort.Port())
		w.u8(uint8(v.Protocol))
		w.u8(uint8(v.State))
		w.host16(v.ClusterID)
		w.u8(v.Zone)
		w.pad(1)
	})
}

// UnmarshalBinary reads a value from the map of either family.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (v *BackendValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *BackendValue) decode(order byteOrder, data []byte) error {
	return decode("backend", order, data, v, func(r *reader) (v BackendValue) {
		addr := r.addr(addrSize(len(data), BackendValue6Size))
		v.AddrPort = netip.AddrPortFrom(addr, r.net16())
		v.Protocol = Protocol(r.u8())
		v.State = BackendState(r.u8())
		v.ClusterID = r.host16()
		v.Zone = r.u8()
		r.pad(1)
		return v
	}, BackendValue4Size, BackendValue6Size)
}

// BackendState is the flags byte of a value of cilium_lb{4,6}_backends_v3. It
// is a number, not a set of bits, and the same for every service with this
// backend.
type BackendState uint8

// The states of a backend.
const (
	BackendActive      BackendState = 0
	BackendTerminating BackendState = 1
	BackendQuarantined BackendState = 2
	BackendMaintenance BackendState = 3
)

// String returns "active", "terminating", "quarantined" or "maintenance", and
// the number of any other state.
func (s BackendState) String() string {
	switch s {
	case BackendActive:
		return "active"
	case BackendTerminating:
		return "terminating"
	case BackendQuarantined:
		return "quarantined"
	case BackendMaintenance:
		return "maintenance"
	}
	return strconv.Itoa(int(s))
}

// MarshalText returns the same as [BackendState.String].
func (s BackendState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
