// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"unsafe"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Where a record has the fields of struct revsk_socket.
const (
	socketSize = int(unsafe.Sizeof(programs.DumpRevskSocket{}))

	idAt          = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Id))
	cookieAt      = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Cookie))
	inodeAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Inode))
	netnsCookieAt = int(unsafe.Offsetof(programs.DumpRevskSocket{}.NetnsCookie))
	netnsInodeAt  = int(unsafe.Offsetof(programs.DumpRevskSocket{}.NetnsInode))
	familyAt      = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Family))
	protocolAt    = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Protocol))
	stateAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.State))
	localPortAt   = int(unsafe.Offsetof(programs.DumpRevskSocket{}.LocalPort))
	peerPortAt    = int(unsafe.Offsetof(programs.DumpRevskSocket{}.PeerPort))
	localAt       = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Local))
	peerAt        = int(unsafe.Offsetof(programs.DumpRevskSocket{}.Peer))
)

// recordList is records, one after the other.
type recordList struct {
	data  []byte
	sizes []int32
}

// record is what a socket has in one map.
type record struct {
	socket []byte // struct revsk_socket
	value  []byte
}

func (r record) id() uint64 { return binary.NativeEndian.Uint64(r.socket[idAt:]) }

func (l *recordList) add(r []byte) {
	l.data = append(l.data, r...)
	l.sizes = append(l.sizes, int32(len(r)))
}

// reset keeps the memory.
func (l *recordList) reset() { l.data, l.sizes = l.data[:0], l.sizes[:0] }

func (l *recordList) records() iter.Seq[record] {
	return func(yield func(record) bool) {
		data := l.data
		for _, size := range l.sizes {
			if !yield(record{data[:socketSize], data[socketSize:size]}) {
				return
			}
			data = data[size:]
		}
	}
}

// decode adds what the record says of the socket itself.
func (r record) decode(s *Socket) {
	b := r.socket
	s.Protocol = lbmap.Protocol(binary.NativeEndian.Uint16(b[protocolAt:]))
	s.Family = Family(binary.NativeEndian.Uint16(b[familyAt:]))
	s.State = State(b[stateAt])
	s.Local = netip.AddrPortFrom(address(b[localAt:]), binary.NativeEndian.Uint16(b[localPortAt:]))
	s.NetNS = NetNS{
		Inode:  uint64(binary.NativeEndian.Uint32(b[netnsInodeAt:])),
		Cookie: binary.NativeEndian.Uint64(b[netnsCookieAt:]),
	}
	s.Cookie = binary.NativeEndian.Uint64(b[cookieAt:])
	s.Inode = binary.NativeEndian.Uint64(b[inodeAt:])
	// The port is in network byte order, unlike the rest. An aborted or disconnected socket has lost either
	// its port or its address too.
	if port := binary.BigEndian.Uint16(b[peerPortAt:]); port != 0 {
		s.Peer = netip.AddrPortFrom(address(b[peerAt:]), port)
	}
}

func address(wire []byte) netip.Addr {
	return netip.AddrFrom16([16]byte(wire)).Unmap()
}

// conn is the tuple of a value of revsk_conn, nil if there is none.
func (r record) conn() (*revnat.Tuple, error) {
	v := new(revnat.ConnValue)
	if err := v.UnmarshalBinary(r.value); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return inUse(&v.Tuple), nil
}

// former is the tuple of a value of revsk_former, nil if there is none.
func (r record) former() (*revnat.Tuple, error) {
	v := new(revnat.FormerValue)
	if err := v.UnmarshalBinary(r.value); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return inUse(&v.Tuple), nil
}

func inUse(t *revnat.Tuple) *revnat.Tuple {
	if t.Peer.Port() == 0 {
		return nil
	}
	return t
}

// peers are the tuples of a value of revsk_peers.
func (r record) peers() ([]revnat.Tuple, error) {
	var v revnat.PeersValue
	if err := v.UnmarshalBinary(r.value); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return v.Tuples(), nil
}

// table is the tuples of a table.
func (r record) table() ([]revnat.Tuple, error) {
	tuples, err := revnat.DecodeTable(r.value)
	if err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	return tuples, nil
}
