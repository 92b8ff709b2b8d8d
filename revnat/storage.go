// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/revsk/revsk/lbmap"
)

// Sizes in bytes of the values of the storage maps.
const (
	ConnValueSize   = 56
	FormerValueSize = 56
	PeersValueSize  = 184
)

// Slots is the number of tuples that a value of revsk_peers has room for.
const Slots = 3

// ConnValue is a value of revsk_conn (struct revsk_conn_value): what a socket is connected to.
type ConnValue struct {
	// Tuple is the zero one if the socket has no connection but a former one.
	Tuple Tuple
	// HasFormer says that the socket has a value in revsk_former.
	HasFormer bool
}

// connHasFormer is REVSK_CONN_HAS_FORMER.
const connHasFormer = 1

// MarshalBinary returns the value as it is in the map, its lock not taken. It returns the errors of
// [Tuple.MarshalBinary].
func (v ConnValue) MarshalBinary() ([]byte, error) {
	return encode("value of revsk_conn", ConnValueSize, func(b []byte) error {
		if v.HasFormer {
			binary.NativeEndian.PutUint32(b[52:56], connHasFormer)
		}
		return v.Tuple.put(b[:TupleSize])
	})
}

// UnmarshalBinary reads a value of revsk_conn. After an error v is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], [lbmap.ErrPadding] or [lbmap.ErrInvalid].
func (v *ConnValue) UnmarshalBinary(data []byte) error {
	return decode("value of revsk_conn", ConnValueSize, data, v, func(v *ConnValue, b []byte) error {
		if err := zero(b[48:52]); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		bits := binary.NativeEndian.Uint32(b[52:56])
		if unknown := bits &^ connHasFormer; unknown != 0 {
			return fmt.Errorf("unknown bits %#x: %w", unknown, lbmap.ErrInvalid)
		}
		v.HasFormer = bits != 0
		return v.Tuple.get(b[:TupleSize])
	})
}

// FormerValue is a value of revsk_former (struct revsk_former_value): what a datagram socket was connected
// to before.
type FormerValue struct {
	Tuple Tuple
}

// MarshalBinary returns the value as it is in the map, its lock not taken. It returns the errors of
// [Tuple.MarshalBinary].
func (v FormerValue) MarshalBinary() ([]byte, error) {
	return encode("value of revsk_former", FormerValueSize, func(b []byte) error {
		return v.Tuple.put(b[:TupleSize])
	})
}

// UnmarshalBinary reads a value of revsk_former. After an error v is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], [lbmap.ErrPadding] or [lbmap.ErrInvalid].
func (v *FormerValue) UnmarshalBinary(data []byte) error {
	return decode("value of revsk_former", FormerValueSize, data, v, func(v *FormerValue, b []byte) error {
		if err := zero(b[TupleSize:]); err != nil {
			return fmt.Errorf("lock and padding: %w", err)
		}
		return v.Tuple.get(b[:TupleSize])
	})
}

// PeersValue is a value of revsk_peers (struct revsk_peers_value): whom an unconnected socket has
// sent to, and where the chain of its further tuples in revsk_overflow begins.
type PeersValue struct {
	// Slots are tuples in no order. A slot whose peer has no port is free.
	Slots [Slots]Tuple
	// ChainLen is the number of tuples in revsk_overflow.
	ChainLen uint32
	// Cookie is the socket's, 0 until it has had a chain for the first time.
	Cookie uint64
	// Head is the peer of the chain's first tuple. Port 0: there is no chain.
	Head netip.AddrPort
	// Victim is the slot whose tuple leaves for the chain at the next exchange, which the hooks
	// decide upon by ChainHits.
	Victim, ChainHits uint8
	// SlotsTried is how many slots are in use or have been: the hooks do not look at the others.
	SlotsTried uint8
	// HasConn is true if the socket has a value in revsk_conn, or had one.
	HasConn bool
}

// Tuples returns the tuples in the slots, leaving out free ones.
func (v PeersValue) Tuples() []Tuple {
	var tuples []Tuple
	for _, t := range v.Slots {
		if t.Peer.Port() != 0 {
			tuples = append(tuples, t)
		}
	}
	return tuples
}

// MarshalBinary returns the value as it is in the map, its lock not taken. It returns the errors of
// [Tuple.MarshalBinary].
func (v PeersValue) MarshalBinary() ([]byte, error) {
	return encode("value of revsk_peers", PeersValueSize, func(b []byte) error {
		for i, t := range v.Slots {
			if err := t.put(slot(b, i)); err != nil {
				return fmt.Errorf("slot %d: %w", i, err)
			}
		}
		if err := putEndpoint(b[160:176], b[4:6], v.Head); err != nil {
			return fmt.Errorf("head of the chain: %w", err)
		}
		if v.HasConn {
			b[6] = 1
		}
		b[7] = v.SlotsTried
		binary.NativeEndian.PutUint64(b[152:160], v.Cookie)
		binary.NativeEndian.PutUint32(b[176:180], v.ChainLen)
		b[180], b[181] = v.Victim, v.ChainHits
		return nil
	})
}

// UnmarshalBinary reads a value of revsk_peers. After an error v is unchanged.
//
// Returns an error wrapping [lbmap.ErrLength], [lbmap.ErrPadding] or [lbmap.ErrInvalid].
func (v *PeersValue) UnmarshalBinary(data []byte) error {
	return decode("value of revsk_peers", PeersValueSize, data, v, func(v *PeersValue, b []byte) error {
		for i := range v.Slots {
			if err := v.Slots[i].get(slot(b, i)); err != nil {
				return fmt.Errorf("slot %d: %w", i, err)
			}
		}
		if err := zero(b[0:4]); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		v.Head = getEndpoint(b[160:176], b[4:6])
		v.HasConn, v.SlotsTried = b[6] == 1, b[7]
		if b[6] > 1 {
			return fmt.Errorf("has_conn is %d: %w", b[6], lbmap.ErrInvalid)
		}
		v.Cookie = binary.NativeEndian.Uint64(b[152:160])
		v.ChainLen = binary.NativeEndian.Uint32(b[176:180])
		v.Victim, v.ChainHits = b[180], b[181]
		return zero(b[182:184])
	})
}

func slot(b []byte, i int) []byte { return b[8+i*TupleSize : 8+(i+1)*TupleSize] }
