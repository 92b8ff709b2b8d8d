// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"strconv"
	"testing"
)

func TestRelease(t *testing.T) {
	holdForAll(t,
		rule{"counts nothing for a socket that remembers nothing", func(s *scene) {
			s.release()
			s.releaseWith(netip.AddrPortFrom(s.family.services, 0))
			s.counted(counts{})
		}},
		rule{"counts conn", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.releaseWith(s.family.backend(1))
			s.counted(counts{stored: 1, released: 1})
		}},
		rule{"does not care what the kernel has left of the destination", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.releaseWith(netip.AddrPortFrom(s.family.services, 0))
			s.counted(counts{stored: 1, released: 1, releaseZeroed: 1})
		}},
		rule{"counts a destination as zeroed by its port alone", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.releaseWith(netip.AddrPortFrom(s.family.backend(1).Addr(), 0))
			s.counted(counts{stored: 1, released: 1, releaseZeroed: 1})
		}},
	)
	holdForDatagrams(t,
		rule{"counts what was sent, and nothing as zeroed", func(s *scene) {
			s.send(s.tuple(1, 1), s.tuple(2, 2))
			s.releaseWith(netip.AddrPortFrom(s.family.services, 0))
			s.counted(counts{stored: 2, released: 2})
		}},
		rule{"counts conn, slots and table", func(s *scene) {
			s.connect(s.tuple(9, 9))
			s.sendToPeers(slots + 3)
			s.release()
			s.counted(counts{stored: 7, released: 7})
		}},
		rule{"does not count what was dropped before", func(s *scene) {
			s.connect(s.tuple(9, 9))
			s.sendToPeers(slots + 3)
			s.sendDirect(s.family.backend(1))
			s.sendDirect(s.family.backend(5))
			s.connectDirect(s.family.backend(9))
			s.release()
			s.counted(counts{
				stored: 7, droppedDirect: 3, released: 4,
			})
		}},
		rule{"leaves the tables of other sockets alone", func(s *scene) {
			other := s.another()
			s.sendToPeers(slots + 3)
			for n := 1; n <= slots+3; n++ {
				other.send(s.tuple(n, n))
			}
			other.unchangedBy("the release of another socket", s.release)
			s.balance()
		}},
	)
}

// Release deletes what the hash has of every tuple of a table, and of no other socket.
func TestReleaseTable(t *testing.T) {
	for _, n := range tableLengths {
		if n > 250 && optmemMax(t) < 131072 {
			continue // not all would have room
		}
		holdForDatagrams(t, rule{strconv.Itoa(n), func(s *scene) {
			s.setMode(dual)
			other := s.another()
			other.send(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
			s.sendToPeers(slots + n)
			s.release()
			s.counted(counts{stored: slots + n + 4, released: slots + n})
			other.wantHash(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
		}})
	}
}

func (c counts) withoutZeros() counts {
	for metric, n := range c {
		if n == 0 {
			delete(c, metric)
		}
	}
	return c
}
