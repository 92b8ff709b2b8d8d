// SPDX-License-Identifier: Apache-2.0

package prog

import "testing"

func TestSendToService(t *testing.T) {
	holdForDatagrams(t,
		rule{"adds the tuple to the peers", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.wantPeers(s.tuple(1, 1))
			s.wantNoConn()
			s.counted(counts{stored: 1})
		}},
		rule{"adds a tuple for each peer", func(s *scene) {
			s.send(s.tuple(1, 1), s.tuple(1, 2), s.tuple(2, 3))
			s.wantPeers(s.tuple(1, 1), s.tuple(1, 2), s.tuple(2, 3))
			s.counted(counts{stored: 3})
		}},
		rule{"tells peers apart by address and port", func(s *scene) {
			want := []tuple{s.tuple(1, 1)}
			for _, other := range neighbours(s.family.backend(1)) {
				t := s.tuple(1, 1)
				t.peer = other
				want = append(want, t)
			}
			s.send(want...)
			s.wantPeers(want...)
		}},
		rule{"to the same again notes the time", func(s *scene) {
			s.send(s.tuple(1, 1).at(1000), s.tuple(1, 1).at(2000))
			s.wantPeers(s.tuple(1, 1).at(2000))
			s.counted(counts{stored: 1})
		}},
		rule{"the latest service of a peer wins", func(s *scene) {
			want := counts{stored: 2}
			s.send(s.tuple(1, 1), s.tuple(2, 2))
			for _, changed := range s.otherServices(s.tuple(1, 1)) {
				s.send(changed)
				s.wantSlots(changed, s.tuple(2, 2))
				want[updated]++
				s.counted(want)
			}
		}},
		rule{"the latest service of a peer wins in every slot", func(s *scene) {
			s.send(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.send(s.tuple(7, 3), s.tuple(8, 2), s.tuple(9, 1))
			s.wantSlots(s.tuple(9, 1), s.tuple(8, 2), s.tuple(7, 3))
			s.counted(counts{stored: 3, updated: 3})
		}},
		rule{"to the same again notes the time in the table", func(s *scene) {
			s.sendToPeers(slots + 3)
			s.send(s.tuple(slots+2, slots+2).at(2000))
			s.wantTable(s.tuple(6, 6), s.tuple(5, 5).at(2000), s.tuple(4, 4))
			s.counted(counts{stored: 6})
		}},
		rule{"the latest service of a peer wins in the table", func(s *scene) {
			s.sendToPeers(slots + 3)
			want := counts{stored: 6}
			for _, changed := range s.otherServices(s.tuple(5, 5)) {
				s.send(changed)
				s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
				s.wantTable(s.tuple(6, 6), changed, s.tuple(4, 4))
				want[updated]++
				s.counted(want)
			}
		}},
		rule{"leaves conn alone, of the same peer too", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1), s.tuple(3, 3))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers(s.tuple(2, 1), s.tuple(3, 3))
			s.counted(counts{stored: 3})
		}},
		rule{"leaves the former connection alone, of the same peer too", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.send(s.tuple(3, 1))
			s.wantFormer(s.tuple(1, 1))
			s.wantPeers(s.tuple(3, 1))
			s.counted(counts{stored: 3})
		}},
		rule{"leaves other sockets alone", func(s *scene) {
			other := s.another()
			s.sendToPeers(slots + 1)
			other.send(s.tuple(9, 1))
			other.wantPeers(s.tuple(9, 1))
			s.wantPeers(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
		}},
	)
}

func TestSendToNoService(t *testing.T) {
	holdForDatagrams(t,
		rule{"drops the tuple of the very address, and nothing else", func(s *scene) {
			s.send(s.tuple(1, 1), s.tuple(2, 2))
			s.sendDirect(s.family.backend(1))
			s.wantPeers(s.tuple(2, 2))
			s.counted(counts{stored: 2, droppedDirect: 1})
		}},
		rule{"keeps the tuples of other addresses and ports", func(s *scene) {
			s.sendToPeers(slots + 1)
			for _, other := range neighbours(s.family.backend(1)) {
				if other != s.family.backend(2) {
					s.unchangedBy("send to "+other.String(), func() { s.sendDirect(other) })
				}
			}
			s.unchangedBy("send to the service", func() { s.sendDirect(s.family.service(1)) })
			s.counted(counts{stored: 4})
		}},
		rule{"drops the tuple of the very address from the table", func(s *scene) {
			s.sendToPeers(slots + 3)
			s.sendDirect(s.family.backend(slots + 2))
			s.wantTable(s.tuple(6, 6), s.tuple(4, 4))
			s.counted(counts{stored: 6, droppedDirect: 1})
		}},
		rule{"drops the connection to the very address that the socket no longer has", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.sendDirect(s.family.backend(1))
			s.wantNoConn()
			s.wantPeers()
			s.counted(counts{stored: 2, droppedDirect: 2})
		}},
		rule{"drops the former connection to the very address, and what was sent to it", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.send(s.tuple(3, 1))
			s.sendDirect(s.family.backend(1))
			s.wantConn(s.tuple(2, 2))
			s.wantFormer()
			s.wantPeers()
			s.counted(counts{stored: 3, droppedDirect: 2})
		}},
		rule{"an address without a port is nobody's", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.send(s.tuple(3, 3))
			for _, none := range s.withoutPort() {
				s.unchangedBy("send to "+none.String(), func() { s.sendDirect(none) })
			}
			s.counted(counts{stored: 3, droppedDirect: 1})
		}},
		rule{"creates no storage", func(s *scene) {
			s.sendDirect(s.family.backend(1))
			if s.state().hasPeers {
				s.Error("the socket has storage for peers")
			}
			s.counted(counts{})
		}},
		rule{"leaves other sockets alone", func(s *scene) {
			other := s.another()
			s.sendToPeers(slots + 1)
			for n := 1; n <= slots+1; n++ {
				other.send(s.tuple(n, n))
			}
			for n := 1; n <= slots+1; n++ {
				s.sendDirect(s.family.backend(n))
			}
			s.wantPeers()
			other.wantPeers(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
		}},
	)
}

// sendToPeers sends to n backends, numbered from 1, each by a service of its own.
func (s *scene) sendToPeers(n int) {
	s.Helper()
	for i := 1; i <= n; i++ {
		s.send(s.tuple(i, i))
	}
}
