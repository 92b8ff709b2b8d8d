// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// foundSocket is a Socket together with what tells it apart from others.
type foundSocket struct {
	Socket
	id uint64 // the kernel's address of it
}

// join makes one socket of its records in all maps.
func join(dumped *dumped) ([]*foundSocket, error) {
	var all []*foundSocket
	byID := make(map[uint64]*foundSocket)
	find := func(r *record) (*foundSocket, error) {
		s, err := socketOf(r)
		if err != nil {
			return nil, err
		}
		if known := byID[s.id]; known != nil && known.same(s) {
			return known, nil
		}
		byID[s.id] = s
		all = append(all, s)
		return s, nil
	}

	for r := range dumped.conn.records() {
		var v revnat.ConnValue
		s, err := find(&r)
		if err == nil {
			err = v.UnmarshalBinary(r.value)
		}
		if err != nil {
			return nil, err
		}
		if v.Tuple.Peer.Port() != 0 {
			s.Conn = &v.Tuple
		}
	}
	for r := range dumped.former.records() {
		var v revnat.FormerValue
		s, err := find(&r)
		if err == nil {
			err = v.UnmarshalBinary(r.value)
		}
		if err != nil {
			return nil, err
		}
		if v.Tuple.Peer.Port() != 0 {
			s.Former = &v.Tuple
		}
	}
	for r := range dumped.peers.records() {
		var v revnat.PeersValue
		s, err := find(&r)
		if err == nil {
			err = v.UnmarshalBinary(r.value)
		}
		if err != nil {
			return nil, err
		}
		s.Peers = v.Tuples()
	}
	for r := range dumped.tables.records() {
		s, err := find(&r)
		if err != nil {
			return nil, err
		}
		tuples, err := revnat.DecodeTable(r.value)
		if err != nil {
			return nil, err
		}
		s.Peers = append(s.Peers, tuples...)
	}
	return all, nil
}

// same says whether two records with the same address are of the same socket. The maps are read one
// after the other, and the memory of a socket that is gone is used again.
func (s *foundSocket) same(o *foundSocket) bool {
	return s.NetNS == o.NetNS && s.Protocol == o.Protocol && s.Family == o.Family &&
		(s.Cookie == o.Cookie || s.Cookie == 0 || o.Cookie == 0)
}

func socketOf(r *record) (*foundSocket, error) {
	var k iter.DumpRevskSocket
	if _, err := binary.Decode(r.socket, binary.NativeEndian, &k); err != nil {
		return nil, fmt.Errorf("decoding a record: %w", err)
	}
	// The port is in network byte order, unlike the rest.
	peerPort := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k.PeerPort))
	s := &foundSocket{
		id: k.Id,
		Socket: Socket{
			Protocol: lbmap.Protocol(k.Protocol),
			Family:   Family(k.Family),
			State:    State(k.State),
			Local:    netip.AddrPortFrom(address(k.Local.Bytes), k.LocalPort),
			NetNS:    NetNS{Inode: uint64(k.NetnsInode), Cookie: k.NetnsCookie},
			Cookie:   k.Cookie,
			Inode:    k.Inode,
		},
	}
	// An aborted or disconnected socket has lost either its port or its address too.
	if peerPort != 0 {
		s.Peer = netip.AddrPortFrom(address(k.Peer.Bytes), peerPort)
	}
	return s, nil
}

func address(wire [16]byte) netip.Addr {
	return netip.AddrFrom16(wire).Unmap()
}
