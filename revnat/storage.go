// SPDX-License-Identifier: Apache-2.0

package revnat

import (
	"encoding/binary"
	"fmt"

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
	// Tuple is the zero one if the socket has no connection.
	Tuple Tuple
	// HasFormer says that the socket has a value in revsk_former.
	HasFormer bool
	// Ended has a bit for each peer, by its hash, that the application has used directly since, in mode dual: its entry in
	// the hash no longer counts. Below 2^31.
	Ended uint32
}

// connHasFormer is REVSK_CONN_HAS_FORMER.
const connHasFormer = 1

// MarshalBinary returns the value as it is in the map, its lock not taken. It returns the errors of
// [Tuple.MarshalBinary], and one wrapping [lbmap.ErrInvalid] for an Ended that is too large.
func (v ConnValue) MarshalBinary() ([]byte, error) {
	return encode("value of revsk_conn", ConnValueSize, func(b []byte) error {
		if v.Ended >= 1<<31 {
			return fmt.Errorf("bits %#x: %w", v.Ended, lbmap.ErrInvalid)
		}
		bits := v.Ended << 1
		if v.HasFormer {
			bits |= connHasFormer
		}
		binary.NativeEndian.PutUint32(b[52:56], bits)
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
		v.HasFormer = bits&connHasFormer != 0
		v.Ended = bits >> 1
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

// PeersValue is a value of revsk_peers (struct revsk_peers_value): whom a datagram socket has sent to,
// and what its table is like (see [TableMaps]).
type PeersValue struct {
	// Slots are tuples in no order. A slot whose peer has no port is free.
	Slots [Slots]Tuple
	// TableClass is the size of the table: of class c it has 4<<c tuples. 0: there is none.
	TableClass uint8
	// TableMaps has a bit for each map of class [TableClasses] that the socket has a value in; bit 0 is revsk_tab_8k_0.
	TableMaps uint16
	// TableCount is the number of tuples in tables.
	TableCount uint16
	// TableVersion changes when tuples move from one place to another. It is odd meanwhile.
	TableVersion uint32
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
		binary.NativeEndian.PutUint16(b[4:6], v.TableMaps)
		if v.HasConn {
			b[6] = 1
		}
		b[7] = v.SlotsTried
		binary.NativeEndian.PutUint32(b[152:156], v.TableVersion)
		binary.NativeEndian.PutUint16(b[156:158], v.TableCount)
		b[158] = v.TableClass
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
		v.TableMaps = binary.NativeEndian.Uint16(b[4:6])
		v.HasConn, v.SlotsTried = b[6] == 1, b[7]
		if b[6] > 1 {
			return fmt.Errorf("has_conn is %d: %w", b[6], lbmap.ErrInvalid)
		}
		v.TableVersion = binary.NativeEndian.Uint32(b[152:156])
		v.TableCount = binary.NativeEndian.Uint16(b[156:158])
		v.TableClass = b[158]
		return zero(b[159:184])
	})
}

func slot(b []byte, i int) []byte { return b[8+i*TupleSize : 8+(i+1)*TupleSize] }
