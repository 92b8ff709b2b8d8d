// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/revsk/revsk/internal/byteorder"
)

// ServiceKey is a key of cilium_lb{4,6}_services_v2: 12 bytes for IPv4, 24 for
// IPv6.
type ServiceKey struct {
	AddrPort netip.AddrPort
	// Slot is 0 for the service itself and n for its n-th backend.
	Slot     uint16
	Protocol Protocol
	Scope    Scope
}

// Frontend returns the service that the entry belongs to.
func (k ServiceKey) Frontend() Frontend {
	return Frontend{AddrPort: k.AddrPort, Protocol: k.Protocol, Scope: k.Scope}
}

// MarshalBinary returns the key as it is in the map.
//
// Returns an error wrapping [ErrFamily].
func (k ServiceKey) MarshalBinary() ([]byte, error) { return k.encode(binary.NativeEndian) }

func (k ServiceKey) encode(order byteOrder) ([]byte, error) {
	return encode("service key", order, func(w *writer) {
		w.addr(k.AddrPort.Addr())
		w.net16(k.AddrPort.Port())
		w.host16(k.Slot)
		w.u8(uint8(k.Protocol))
		w.u8(uint8(k.Scope))
		w.pad(2)
	})
}

// UnmarshalBinary reads a key from the map of either family.
//
// Returns an error wrapping [ErrLength], [ErrPadding] or [ErrFamily].
func (k *ServiceKey) UnmarshalBinary(data []byte) error {
	return k.decode(binary.NativeEndian, data)
}

func (k *ServiceKey) decode(order byteOrder, data []byte) error {
	return decode("service key", order, data, k, func(r *reader) (v ServiceKey) {
		addr := r.addr(addrSize(len(data), ServiceKey6Size))
		v.AddrPort = netip.AddrPortFrom(addr, r.net16())
		v.Slot = r.host16()
		v.Protocol = Protocol(r.u8())
		v.Scope = Scope(r.u8())
		r.pad(2)
		return v
	}, ServiceKey4Size, ServiceKey6Size)
}

// ServiceValue is a value of cilium_lb{4,6}_services_v2: 12 bytes in both
// families.
type ServiceValue struct {
	// Union is the first four bytes as a number in host byte order. What it
	// means depends on the slot of the key and on the flags:
	//
	//   - slot n: [ServiceValue.BackendID];
	//   - slot 0 with [FlagL7LoadBalancer]: [ServiceValue.L7ProxyPort];
	//   - any other slot 0: [ServiceValue.AffinityTimeout] and
	//     [ServiceValue.Algorithm].
	Union uint32
	// Count is, in slot 0, the number of slots that new connections are spread
	// over: slots 1 to Count.
	Count uint16
	// RevNat is the reverse-NAT index, which identifies the service.
	RevNat uint16
	Flags  ServiceFlags
	// QCount is, in slot 0, the number of slots behind these, whose backends
	// get no new connections: quarantined ones, for example.
	QCount uint16
}

// BackendID returns the key of the backend in cilium_lb{4,6}_backends_v3.
func (v ServiceValue) BackendID() uint32 { return v.Union }

// SetBackendID sets what [ServiceValue.BackendID] returns.
func (v *ServiceValue) SetBackendID(id uint32) { v.Union = id }

const (
	algorithmShift      = 24
	affinityTimeoutMask = 1<<algorithmShift - 1

	// MaxAffinityTimeout is the longest affinity timeout, for which the maps
	// have 24 bits.
	MaxAffinityTimeout = affinityTimeoutMask * time.Second
)

// AffinityTimeout returns for how long after its last connection a client keeps
// its backend, in whole seconds.
func (v ServiceValue) AffinityTimeout() time.Duration {
	return time.Duration(v.Union&affinityTimeoutMask) * time.Second
}

// Algorithm returns how a backend is chosen.
func (v ServiceValue) Algorithm() Algorithm { return Algorithm(v.Union >> algorithmShift) }

// SetAffinity sets what [ServiceValue.AffinityTimeout] and
// [ServiceValue.Algorithm] return.
//
// Returns an error wrapping [ErrInvalid] for a timeout with a fraction of a
// second, below zero or above [MaxAffinityTimeout].
func (v *ServiceValue) SetAffinity(timeout time.Duration, a Algorithm) error {
	if timeout < 0 || timeout > MaxAffinityTimeout || timeout%time.Second != 0 {
		return fmt.Errorf("affinity timeout %v: expected whole seconds up to %v: %w",
			timeout, MaxAffinityTimeout, ErrInvalid)
	}
	v.Union = uint32(timeout/time.Second) | uint32(a)<<algorithmShift
	return nil
}

// L7ProxyPort returns the port of the local L7 proxy. It is the low half of a number in host byte order, and
// itself in network byte order.
func (v ServiceValue) L7ProxyPort() uint16 { return byteorder.Net16(uint16(v.Union)) }

// SetL7ProxyPort sets what [ServiceValue.L7ProxyPort] returns.
func (v *ServiceValue) SetL7ProxyPort(port uint16) { v.Union = uint32(byteorder.Net16(port)) }

// MarshalBinary returns the value as it is in the map.
func (v ServiceValue) MarshalBinary() ([]byte, error) { return v.encode(binary.NativeEndian) }

func (v ServiceValue) encode(order byteOrder) ([]byte, error) {
	return encode("service value", order, func(w *writer) {
		w.host32(v.Union)
		w.host16(v.Count)
		w.net16(v.RevNat)
		w.u8(uint8(v.Flags))
		w.u8(uint8(v.Flags >> 8))
		w.host16(v.QCount)
	})
}

// UnmarshalBinary reads a value from the map of either family.
//
// Returns an error wrapping [ErrLength].
func (v *ServiceValue) UnmarshalBinary(data []byte) error {
	return v.decode(binary.NativeEndian, data)
}

func (v *ServiceValue) decode(order byteOrder, data []byte) error {
	return decode("service value", order, data, v, func(r *reader) (v ServiceValue) {
		v.Union = r.host32()
		v.Count = r.host16()
		v.RevNat = r.net16()
		v.Flags = ServiceFlags(r.u8())
		v.Flags |= ServiceFlags(r.u8()) << 8
		v.QCount = r.host16()
		return v
	}, ServiceValueSize)
}

// Algorithm says how a backend is chosen for a new connection. The socket hooks
// do not look at it.
type Algorithm uint8

// The algorithms that Cilium has.
const (
	AlgorithmDefault Algorithm = 0 // as configured for the node
	AlgorithmRandom  Algorithm = 1
	AlgorithmMaglev  Algorithm = 2
)

// String returns "default", "random" or "maglev", and the number of any other.
func (a Algorithm) String() string {
	switch a {
	case AlgorithmDefault:
		return "default"
	case AlgorithmRandom:
		return "random"
	case AlgorithmMaglev:
		return "maglev"
	}
	return strconv.Itoa(int(a))
}

// MarshalText returns the same as [Algorithm.String].
func (a Algorithm) MarshalText() ([]byte, error) { return []byte(a.String()), nil }
