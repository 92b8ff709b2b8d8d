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
			s.wantConn(s.tuple(1, 1).connected())
			s.wantPeers()
			s.counted(counts{stored: 1})
		}},
		rule{"does not write the same tuple again", func(s *scene) {
			s.connect(s.tuple(1, 1).at(1000))
			s.connect(s.tuple(1, 1).at(2000))
			s.wantConn(s.tuple(1, 1).connected().at(1000))
			s.wantPeers()
			s.counted(counts{stored: 1})
		}},
		rule{"replaces the tuple in place if the backend is the same", func(s *scene) {
			s.connect(s.tuple(1, 1).at(1000))
			s.connect(s.tuple(2, 1).at(2000))
			s.wantConn(s.tuple(2, 1).connected().at(2000))
			s.wantPeers()
			s.counted(counts{stored: 1, updated: 1})
		}},
		rule{"replaces the tuple in place if anything of the service has changed", func(s *scene) {
			want := counts{stored: 1}
			s.connect(s.tuple(1, 1))
			for _, changed := range s.otherServices(s.tuple(1, 1)) {
				s.connect(changed)
				s.wantConn(changed.connected())
				want[updated]++
				s.counted(want)
			}
		}},
		rule{"keeps the former connection among the peers", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantConn(s.tuple(2, 2).connected())
			s.wantPeers(s.tuple(1, 1).connected())
			s.counted(counts{stored: 2})
		}},
		rule{"keeps every former connection, in slots and chain", func(s *scene) {
			const n = slots + 3
			var former []tuple
			for i := range n {
				s.connect(s.tuple(i, i))
				former = append(former, s.tuple(i, i).connected())
			}
			s.wantConn(former[n-1])
			s.wantPeers(former[:n-1]...)
			s.counted(counts{stored: n, overflowStored: 2})
		}},
		rule{"marks what the socket has sent to the former connection's peer since", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(3, 3))
			s.wantConn(s.tuple(3, 3).connected())
			s.wantPeers(s.tuple(2, 1).connected())
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"marks it in the chain, too", func(s *scene) {
			s.connect(s.tuple(9, 4))
			for i := 1; i <= slots+1; i++ {
				s.send(s.tuple(i, i))
			}
			s.wantChain(s.tuple(4, 4))
			s.connect(s.tuple(5, 5))
			s.wantConn(s.tuple(5, 5).connected())
			s.wantPeers(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4).connected())
		}},
		rule{"takes a former connection back from the peers", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1).connected())
			s.wantPeers(s.tuple(2, 2).connected())
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"drops the tuple that a send has left for the same peer", func(s *scene) {
			s.send(s.tuple(2, 1), s.tuple(3, 3))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1).connected())
			s.wantPeers(s.tuple(3, 3))
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer though it names the same service", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1).connected())
			s.wantPeers()
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer though conn has it already", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1).connected())
			s.wantPeers()
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"drops the tuple for the same peer from the chain", func(s *scene) {
			for i := 1; i <= slots+3; i++ {
				s.send(s.tuple(i, i))
			}
			s.connect(s.tuple(9, slots+2))
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(6, 6), s.tuple(4, 4))
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
			s.wantConn(s.tuple(1, 1).connected())
			s.counted(counts{stored: 1})
		}},
		rule{"drops the former connection of a stream socket", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantConn(s.tuple(2, 2).connected())
			if s.state().hasPeers {
				s.Error("a stream socket has storage for peers")
			}
			s.counted(counts{stored: 2, droppedReplaced: 1})
		}},
		rule{"replaces the tuple of a stream socket in place if the backend is the same", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 1))
			s.wantConn(s.tuple(2, 1).connected())
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
			s.wantConn(s.tuple(1, 1).connected())
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
			s.wantConn(s.tuple(2, 2).connected())
			s.wantPeers()
			s.counted(counts{stored: 2, droppedDirect: 1})
		}},
		rule{"drops what was sent to the very address from the chain", func(s *scene) {
			for i := 1; i <= slots+3; i++ {
				s.send(s.tuple(i, i))
			}
			s.connectDirect(s.family.backend(slots + 2))
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(6, 6), s.tuple(4, 4))
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
			s.wantConn(s.tuple(1, 1).connected())
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.counted(counts{stored: 1, droppedDirect: 1})
		}},
	)
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
