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
	flagMigrated = 1 << iota
	flagOvertaken
	flagSubflow

	knownFlags = flagMigrated | flagOvertaken | flagSubflow
)

// TimeUnit is the unit of [Tuple.Time]: 2^30 ns, a little more than a second.
const TimeUnit = time.Duration(1 << 30)

// Tuple is struct revsk_tuple: that a socket talks to Peer, which the application knows as Service.
//
// One whose peer has no port is none. The zero Tuple is 48 zero bytes.
type Tuple struct {
	// Peer is the backend, as the kernel sees it.
	Peer netip.AddrPort
	// Service is the address that the application used.
	Service netip.AddrPort
	// RevNATIndex identifies the service: the key of cilium_lb{4,6}_reverse_nat.
	RevNATIndex uint16
	// Migrated says that the tuple was brought from the hash cilium_lb{4,6}_reverse_sk.
	Migrated bool
	// Overtaken says that it is of a connect that another has overtaken: the kernel has rejected it, or threads
	// connect the socket without waiting for each other.
	Overtaken bool
	// Subflow says that it is of a TCP connection of an MPTCP socket: not counted, and not in the hash.
	Subflow bool
	// Age counts the new tuples that have wanted the place of this one, among the peers, since it was last used.
	Age uint8
	// BackendID is the backend's key in cilium_lb{4,6}_backends_v3. 0: unknown.
	BackendID uint32
	// Time is CLOCK_MONOTONIC, a multiple of [TimeUnit]. 0: unknown. Of a connection it is when the connection was made, of
	// a former one when it was replaced, and of a peer that was sent to when the last datagram was.
	Time time.Duration
}

// MarshalBinary returns the tuple as it is in the maps.
//
// Returns an error wrapping [lbmap.ErrFamily] for an address without a form in the map, or
// [lbmap.ErrInvalid] for a Time that is not 32 bits of [TimeUnit].
func (t Tuple) MarshalBinary() ([]byte, error) { return encode("tuple", TupleSize, t.put) }

// UnmarshalBinary reads a tuple. After an error t is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], [lbmap.ErrPadding], or [lbmap.ErrInvalid] for an unknown
// flag.
func (t *Tuple) UnmarshalBinary(data []byte) error {
	if len(data) != TupleSize {
		return fmt.Errorf("decoding tuple: %d bytes, not %d: %w", len(data), TupleSize, lbmap.ErrLength)
	}
	if err := t.get(data); err != nil {
		return fmt.Errorf("decoding tuple: %w", err)
	}
	return nil
}

func (t Tuple) put(b []byte) error {
	if err := putEndpoint(b[0:16], b[32:34], t.Peer); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	if err := putEndpoint(b[16:32], b[34:36], t.Service); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	binary.BigEndian.PutUint16(b[36:38], t.RevNATIndex)
	for flag, set := range map[uint8]bool{flagMigrated: t.Migrated, flagOvertaken: t.Overtaken, flagSubflow: t.Subflow} {
		if set {
			b[38] |= flag
		}
	}
	b[39] = t.Age
	binary.NativeEndian.PutUint32(b[40:44], t.BackendID)
	if t.Time%TimeUnit != 0 || t.Time < 0 || t.Time > math.MaxUint32*TimeUnit {
		return fmt.Errorf("time %v after boot: %w", t.Time, lbmap.ErrInvalid)
	}
	binary.NativeEndian.PutUint32(b[44:48], uint32(t.Time/TimeUnit))
	return nil
}

// get leaves t as it is after an error.
func (t *Tuple) get(b []byte) error {
	flags := b[38]
	if unknown := flags &^ knownFlags; unknown != 0 {
		return fmt.Errorf("unknown flags %#x: %w", unknown, lbmap.ErrInvalid)
	}
	*t = Tuple{
		Peer:        getEndpoint(b[0:16], b[32:34]),
		Service:     getEndpoint(b[16:32], b[34:36]),
		RevNATIndex: binary.BigEndian.Uint16(b[36:38]),
		Migrated:    flags&flagMigrated != 0,
		Overtaken:   flags&flagOvertaken != 0,
		Subflow:     flags&flagSubflow != 0,
		Age:         b[39],
		BackendID:   binary.NativeEndian.Uint32(b[40:44]),
		Time:        time.Duration(binary.NativeEndian.Uint32(b[44:48])) * TimeUnit,
	}
	return nil
}
