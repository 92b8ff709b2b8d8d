// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"unsafe"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Where a record has the fields of struct revsk_socket.
const (
	socketSize = int(unsafe.Sizeof(programs.DumpRevskSocket{}))

	idAt           = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Id))
	cookieAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Cookie))
	inodeAt        = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Inode))
	netnsCookieAt  = int(unsafe.Offsetof(programs.DumpRevskSocket{}.NetnsCookie))
	netnsInodeAt   = int(unsafe.Offsetof(programs.DumpRevskSocket{}.NetnsInode))
	tuplesAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Tuples))
	protocolAt     = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Protocol))
	localPortAt    = int(unsafe.Offsetof(programs.DumpRevskSocket{}.LocalPort))
	peerPortAt     = int(unsafe.Offsetof(programs.DumpRevskSocket{}.PeerPort))
	tableVersionAt = int(unsafe.Offsetof(programs.DumpRevskSocket{}.TableVersion))
	familyAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Family))
	stateAt        = int(unsafe.Offsetof(programs.DumpRevskSocket{}.State))
	localAt        = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Local))
	peerAt         = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Peer))
)

// leastRecord is the size of a record of a socket with a connection.
const leastRecord = socketSize + revnat.TupleSize

// wholeTuples is how many tuples a whole record has before those of its peers: connection and former connection.
const wholeTuples = 2

// REVSK_SUBFLOW and REVSK_OWNED, in the number of tuples.
const (
	subflow = 0x8000
	owned   = 0x4000
)

// record is a struct revsk_socket, and the tuples that follow it.
type record []byte

// records are those in a part of the buffer. They are valid until the next dump.
func records(b []byte) iter.Seq[record] {
	return func(yield func(record) bool) {
		for len(b) > 0 {
			r := record(b)
			r = r[:r.size()]
			if !yield(r) {
				return
			}
			b = b[len(r):]
		}
	}
}

func (r record) id() uint64           { return binary.NativeEndian.Uint64(r[idAt:]) }
func (r record) netns() uint32        { return binary.NativeEndian.Uint32(r[netnsInodeAt:]) }
func (r record) tableVersion() uint16 { return binary.NativeEndian.Uint16(r[tableVersionAt:]) }
func (r record) tupleCount() int {
	return int(binary.NativeEndian.Uint16(r[tuplesAt:]) &^ (subflow | owned))
}
func (r record) size() int { return socketSize + r.tupleCount()*revnat.TupleSize }

// holds says whether one of the tuples is not empty.
func (r record) holds() bool {
	for i := range r.tupleCount() {
		if !isEmpty(r[socketSize+i*revnat.TupleSize:]) {
			return true
		}
	}
	return false
}

// isEmpty says whether a tuple has no peer.
func isEmpty(tuple []byte) bool { return [2]byte(tuple[32:34]) == [2]byte{} }

// socket adds what the record says of the socket itself.
func (r record) socket(s *Socket) {
	s.Protocol = lbmap.Protocol(binary.NativeEndian.Uint16(r[protocolAt:]))
	s.Family = Family(r[familyAt])
	s.State = State(r[stateAt])
	flags := binary.NativeEndian.Uint16(r[tuplesAt:])
	s.Subflow, s.owned = flags&subflow != 0, flags&owned != 0
	s.Local = netip.AddrPortFrom(address(r[localAt:]), binary.NativeEndian.Uint16(r[localPortAt:]))
	s.NetNS.Inode = uint64(r.netns())
	s.NetNS.Cookie = binary.NativeEndian.Uint64(r[netnsCookieAt:])
	s.Cookie = binary.NativeEndian.Uint64(r[cookieAt:])
	s.Inode = binary.NativeEndian.Uint64(r[inodeAt:])
	// The port is in network byte order, unlike the rest. An aborted or disconnected socket has lost either
	// its port or its address too.
	if port := binary.BigEndian.Uint16(r[peerPortAt:]); port != 0 {
		s.Peer = netip.AddrPortFrom(address(r[peerAt:]), port)
	}
}

func address(wire []byte) netip.Addr {
	return netip.AddrFrom16([16]byte(wire)).Unmap()
}

// tuple is the one with this number, nil if it is none. Without room for it memory is taken.
func (r record) tuple(i int, room *revnat.Tuple) (*revnat.Tuple, error) {
	b := r[socketSize+i*revnat.TupleSize:][:revnat.TupleSize]
	if isEmpty(b) {
		return nil, nil
	}
	if room == nil {
		room = new(revnat.Tuple)
	}
	if err := room.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return room, nil
}

// tuples are those from a number on.
func (r record) tuples(from int) ([]revnat.Tuple, error) {
	if r.tupleCount() <= from {
		return nil, nil
	}
	tuples, err := revnat.DecodeTable(r[socketSize+from*revnat.TupleSize:])
	if err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return tuples, nil
}

// room is memory for the connection and the former connection of a socket.
type room struct{ conn, former revnat.Tuple }

// whole is the socket of a record that has all that it holds. Without room memory is taken.
func (r record) whole(to *room) (s Socket, err error) {
	var conn, former *revnat.Tuple
	if to != nil {
		conn, former = &to.conn, &to.former
	}
	r.socket(&s)
	if s.Conn, err = r.tuple(0, conn); err != nil || r.tupleCount() == 1 {
		return s, err
	}
	if s.Former, err = r.tuple(1, former); err != nil {
		return s, err
	}
	s.Peers, err = r.tuples(wholeTuples)
	slices.SortFunc(s.Peers, comparePeers)
	return s, err
}
