// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/revsk/revsk/lbmap"
)

// TupleSize is the size in bytes of struct revsk_tuple.
const TupleSize = 48

// Flags of struct revsk_tuple.
const (
	flagFromConnect = 1 << iota
	flagMigrated

	knownFlags = flagFromConnect | flagMigrated
)

// Tuple is struct revsk_tuple: that a socket talks to Peer, which the application knows as Service.
//
// The zero Tuple is 48 zero bytes.
type Tuple struct {
	// Peer is the backend, as the kernel sees it.
	Peer netip.AddrPort
	// Service is the address that the application used.
	Service netip.AddrPort
	// RevNATIndex identifies the service, as in cilium_lb{4,6}_reverse_nat.
	RevNATIndex uint16
	// Protocol is the socket's.
	Protocol lbmap.Protocol
	// FromConnect says that the application connected to Service, rather than only sending to it.
	FromConnect bool
	// Migrated says that the tuple was brought from the hash cilium_lb{4,6}_reverse_sk.
	Migrated bool
	// BackendID is the backend's id in cilium_lb{4,6}_backends_v3, 0 if it is not known.
	BackendID uint32
	// Created is when the socket first used Service, since boot (CLOCK_MONOTONIC), in whole seconds.
	Created time.Duration
}

// MarshalBinary returns the tuple as it is in the maps.
//
// Returns an error wrapping [lbmap.ErrFamily] for an address without a form in the map, or
// [lbmap.ErrInvalid] for a Created that is not a number of seconds of 32 bits.
func (t Tuple) MarshalBinary() ([]byte, error) { return encode("tuple", TupleSize, t.put) }

// UnmarshalBinary reads a tuple. After an error t is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], or [lbmap.ErrInvalid] for an unknown flag.
func (t *Tuple) UnmarshalBinary(data []byte) error {
	return decode("tuple", TupleSize, data, t, (*Tuple).get)
}

func (t Tuple) put(b []byte) error {
	if err := putEndpoint(b[0:16], b[32:34], t.Peer); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	if err := putEndpoint(b[16:32], b[34:36], t.Service); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	binary.BigEndian.PutUint16(b[36:38], t.RevNATIndex)
	b[38] = uint8(t.Protocol)
	if t.FromConnect {
		b[39] |= flagFromConnect
	}
	if t.Migrated {
		b[39] |= flagMigrated
	}
	binary.NativeEndian.PutUint32(b[40:44], t.BackendID)
	if t.Created%time.Second != 0 || t.Created < 0 || t.Created > math.MaxUint32*time.Second {
		return fmt.Errorf("created %v after boot: %w", t.Created, lbmap.ErrInvalid)
	}
	binary.NativeEndian.PutUint32(b[44:48], uint32(t.Created/time.Second))
	return nil
}

func (t *Tuple) get(b []byte) error {
	flags := b[39]
	if unknown := flags &^ knownFlags; unknown != 0 {
		return fmt.Errorf("unknown flags %#x: %w", unknown, lbmap.ErrInvalid)
	}
	*t = Tuple{
		Peer:        getEndpoint(b[0:16], b[32:34]),
		Service:     getEndpoint(b[16:32], b[34:36]),
		RevNATIndex: binary.BigEndian.Uint16(b[36:38]),
		Protocol:    lbmap.Protocol(b[38]),
		FromConnect: flags&flagFromConnect != 0,
		Migrated:    flags&flagMigrated != 0,
		BackendID:   binary.NativeEndian.Uint32(b[40:44]),
		Created:     time.Duration(binary.NativeEndian.Uint32(b[44:48])) * time.Second,
	}
	return nil
}
