// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"testing"
)

func TestConnectToService(t *testing.T) {
	holdForDatagrams(t,
		rule{"overwrites conn", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers()
			s.counted(counts{stored: 1})
		}},
		rule{"does not write the same tuple again", func(s *scene) {
			s.connect(s.tuple(1, 1).at(1000))
			s.connect(s.tuple(1, 1).at(2000))
			s.wantConn(s.tuple(1, 1).at(1000))
			s.wantPeers()
			s.counted(counts{stored: 1})
		}},
		rule{"replaces the tuple in place if the backend is the same", func(s *scene) {
			s.connect(s.tuple(1, 1).at(1000))
			s.connect(s.tuple(2, 1).at(2000))
			s.wantConn(s.tuple(2, 1).at(2000))
			s.wantPeers()
			s.counted(counts{stored: 1, updated: 1})
		}},
		rule{"replaces the tuple in place if anything of the service has changed", func(s *scene) {
			want := counts{stored: 1}
			s.connect(s.tuple(1, 1))
			for _, changed := range s.otherServices(s.tuple(1, 1)) {
				s.connect(changed)
				s.wantConn(changed)
				want[updated]++
				s.counted(want)
			}
		}},
		rule{"keeps the former connection, with the time at which it was replaced", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2).at(2000))
			s.wantConn(s.tuple(2, 2).at(2000))
			s.wantFormer(s.tuple(1, 1).at(2000))
			s.wantPeers()
			s.counted(counts{stored: 2})
		}},
		rule{"keeps every former connection, all but the last as what was sent to", func(s *scene) {
			const n = slots + 4
			var former []tuple
			for i := range n {
				s.connect(s.tuple(i, i))
				former = append(former, s.tuple(i, i))
			}
			s.wantConn(former[n-1])
			s.wantFormer(former[n-2])
			for i := range former[:n-2] {
				former[i] = former[i].overtaken()
			}
			s.wantPeers(former[:n-2]...)
			s.counted(counts{stored: n})
		}},
		rule{"keeps the former connection beside what the socket has sent to its peer since", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(3, 3))
			s.wantConn(s.tuple(3, 3))
			s.wantFormer(s.tuple(1, 1))
			s.wantPeers(s.tuple(2, 1))
			s.counted(counts{stored: 3})
		}},
		rule{"keeps of the one before the former connection what the socket has sent to its peer since, with the mark of an overtaken connect", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(3, 3))
			s.connect(s.tuple(4, 4))
			s.wantFormer(s.tuple(3, 3))
			s.wantPeers(s.tuple(2, 1).overtaken())
			s.counted(counts{stored: 4, droppedReplaced: 1})
		}},
		rule{"exchanges the connection and the former one", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connect(s.tuple(3, 1))
			s.wantConn(s.tuple(3, 1))
			s.wantFormer(s.tuple(2, 2))
			s.wantPeers()
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"drops the tuple that a send has left for the same peer", func(s *scene) {
			s.send(s.tuple(2, 1), s.tuple(3, 3))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers(s.tuple(3, 3))
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer though it names the same service", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers()
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer though conn has it already", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers()
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer from the table", func(s *scene) {
			for i := 1; i <= slots+3; i++ {
				s.send(s.tuple(i, i))
			}
			s.connect(s.tuple(9, slots+2))
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantTable(s.tuple(6, 6), s.tuple(4, 4))
		}},
		rule{"takes a backend's other ports and addresses for other peers", func(s *scene) {
			conn := s.tuple(1, 1)
			s.connect(conn)
			var others []tuple
			for _, other := range neighbours(conn.peer) {
				t := s.tuple(2, 1)
				t.peer = other
				s.send(t)
				others = append(others, t)
			}
			s.connect(conn)
			s.wantPeers(others...)
		}},
	)
	holdForStreams(t,
		rule{"overwrites conn of a stream socket", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.counted(counts{stored: 1})
		}},
		rule{"drops the former connection of a stream socket", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantConn(s.tuple(2, 2))
			if s.state().hasPeers {
				s.Error("a stream socket has storage for peers")
			}
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"replaces the tuple of a stream socket in place if the backend is the same", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 1))
			s.wantConn(s.tuple(2, 1))
			s.counted(counts{stored: 1, updated: 1})
		}},
	)
}

func TestConnectToNoService(t *testing.T) {
	holdForDatagrams(t,
		rule{"drops conn if its peer is the very address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.counted(counts{stored: 1, droppedDirect: 1})
		}},
		rule{"keeps conn if its peer is another", func(s *scene) {
			s.connect(s.tuple(1, 1))
			for _, other := range neighbours(s.family.backend(1)) {
				s.unchangedBy("connect to "+other.String(), func() { s.connectDirect(other) })
			}
			s.unchangedBy("connect to the service", func() { s.connectDirect(s.family.service(1)) })
			s.counted(counts{stored: 1})
		}},
		rule{"drops what was sent to the very address, and nothing else", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 2), s.tuple(3, 3))
			s.connectDirect(s.family.backend(2))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers(s.tuple(3, 3))
			s.counted(counts{stored: 3, droppedDirect: 1})
		}},
		rule{"drops both what is connected and what was sent to the very address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1), s.tuple(3, 3))
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.wantPeers(s.tuple(3, 3))
			s.counted(counts{stored: 3, droppedDirect: 2})
		}},
		rule{"drops a former connection to the very address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(1))
			s.wantConn(s.tuple(2, 2))
			s.wantFormer()
			s.counted(counts{stored: 2, droppedDirect: 1})
		}},
		rule{"drops conn, and keeps a former connection to another address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.wantNoConn()
			s.wantFormer(s.tuple(1, 1))
			s.counted(counts{stored: 2, droppedDirect: 1})
			s.connect(s.tuple(3, 3))
			s.wantConn(s.tuple(3, 3))
			s.wantFormer(s.tuple(1, 1))
			s.counted(counts{stored: 3, droppedDirect: 1})
		}},
		rule{"drops conn, and then the former connection", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.wantFormer()
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantFormer()
		}},
		rule{"a connect to the former connection's peer after that takes its place", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.connect(s.tuple(3, 1))
			s.wantConn(s.tuple(3, 1))
			s.wantFormer()
			s.counted(counts{stored: 3, droppedDirect: 1, droppedReplaced: 1})
		}},
		rule{"an address without a port is nobody's", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			for _, none := range s.withoutPort() {
				s.unchangedBy("connect to "+none.String(), func() { s.connectDirect(none) })
			}
			s.counted(counts{stored: 2, droppedDirect: 1})
		}},
		rule{"drops what was sent to the very address from the table", func(s *scene) {
			for i := 1; i <= slots+3; i++ {
				s.send(s.tuple(i, i))
			}
			s.connectDirect(s.family.backend(slots + 2))
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantTable(s.tuple(6, 6), s.tuple(4, 4))
		}},
		rule{"creates no storage", func(s *scene) {
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			if s.state().hasPeers {
				s.Error("the socket has storage for peers")
			}
			s.counted(counts{})
		}},
	)
	holdForStreams(t,
		rule{"drops conn of a stream socket if its peer is the very address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connectDirect(s.family.backend(2))
			s.wantConn(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.counted(counts{stored: 1, droppedDirect: 1})
		}},
	)
}

// withoutPort are endpoints that no tuple is for: the first is what an empty one looks like.
func (s *scene) withoutPort() []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv6Unspecified(), 0),
		netip.AddrPortFrom(s.unspecified(), 0),
		netip.AddrPortFrom(s.family.backend(1).Addr(), 0),
	}
}

// neighbours are addresses that differ from a in the port only, in the last bits
// of the address, and in the first ones.
func neighbours(a netip.AddrPort) []netip.AddrPort {
	b := a.Addr().AsSlice()
	b[0] ^= 1
	far, _ := netip.AddrFromSlice(b)
	return []netip.AddrPort{
		netip.AddrPortFrom(a.Addr(), a.Port()^0x0100),
		netip.AddrPortFrom(a.Addr().Next(), a.Port()),
		netip.AddrPortFrom(far, a.Port()),
	}
}

// otherServices are tuples for the same peer, each different in one more way
// from the one before it.
func (s *scene) otherServices(t tuple) []tuple {
	address, port, index, backend := t, t, t, t
	address.service = s.family.service(99)
	port = address
	port.service = netip.AddrPortFrom(address.service.Addr(), 8000)
	index = port
	index.revNat = 98
	backend = index
	backend.backendID = 97
	return []tuple{address, port, index, backend}
}
