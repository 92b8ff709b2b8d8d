// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
)

// tableLengths are numbers of tuples in a table: of every class, and of several maps.
var tableLengths = []int{0, 1, 2, 8, 9, 33, 64, 100, 300, 1000}

// layout is where n tuples are that came in this order.
func (s *scene) layout(n int) (inSlots, inTable []tuple) {
	for i := 1; i <= n; i++ {
		if i <= slots {
			inSlots = append(inSlots, s.tuple(i, i))
		} else {
			inTable = append(inTable, s.tuple(i, i))
		}
	}
	return inSlots, inTable
}

// wantAllFound checks that a lookup finds each of these and nothing else nearby.
func (x *subject) wantAllFound(tuples ...tuple) {
	x.s.Helper()
	for _, t := range tuples {
		out := x.withAddress("find", t.peer)
		if out.Result == 0 {
			x.s.Errorf("peer %v is not found", t.peer)
		} else if got := fromWire(out.Tuple); got != t {
			x.s.Errorf("peer %v: found %v, want %v", t.peer, got, t)
		}
		other := netip.AddrPortFrom(t.peer.Addr(), t.peer.Port()+1)
		if x.withAddress("find", other).Result != 0 {
			x.s.Errorf("peer %v is found, which the socket does not have", other)
		}
	}
}

// Insert and find: the slots first, then the table, which grows by size and then by maps. Nothing is evicted.
func TestFillSlotsThenTable(t *testing.T) {
	if !raiseOptmem(t) {
		t.Log("net.core.optmem_max cannot be set here: with what it is")
	}
	for _, n := range append([]int{1, slots - 1, slots}, tableLengths[1:]...) {
		if n > 250 && optmemMax(t) < 131072 {
			continue
		}
		holdForDatagrams(t, rule{fmt.Sprintf("%d peers", n), func(s *scene) {
			s.sendToPeers(n)
			inSlots, inTable := s.layout(n)
			s.wantSlots(inSlots...)
			s.wantTable(slices.Clone(inTable)...)
			s.wantAllFound(append(inSlots, inTable...)...)
			s.counted(counts{stored: n})
			st := s.state()
			s.Logf("class %d, %d maps", st.class, st.maps)
		}})
	}
}

// A peer goes to the emptier of its two buckets. Of the two of the smallest table each peer has both.
func TestTheEmptierBucketTakesAPeer(t *testing.T) {
	holdForDatagrams(t, rule{"of the smallest table", func(s *scene) {
		for n := 1; n <= slots+8; n++ {
			s.send(s.tuple(n, n))
			if n <= slots {
				continue
			}
			var table harnessRevskTable512Value
			if found, err := s.h.stored("revsk_tab_512", s.fd, &table); err != nil || !found {
				s.Fatalf("%d peers: there is a table: %v, %v", n, found, err)
			}
			var used [2]int
			for i, t := range table.Tuples {
				if t.PeerPort != 0 {
					used[i/4]++
				}
			}
			if used[0]+used[1] != n-slots || max(used[0], used[1])-min(used[0], used[1]) > 1 {
				s.Errorf("%d tuples are in the table: %v", n-slots, used)
			}
		}
	}})
}

// Readers without the lock of the socket notice by the version that tuples have moved meanwhile.
func TestTheVersionChangesWhenTuplesMove(t *testing.T) {
	if !raiseOptmem(t) {
		t.Log("net.core.optmem_max cannot be set here: with what it is")
	}
	holdForDatagrams(t, rule{"to a larger table, to another map, to another bucket", func(s *scene) {
		version := func() uint32 {
			var p harnessRevskPeersValue
			if _, err := s.h.stored(harnessMapRevskPeers, s.fd, &p); err != nil {
				s.Fatal(err)
			}
			return p.TableVersion
		}
		places := func() map[netip.AddrPort]string {
			return s.state().places
		}
		for n := 1; n <= 150; n++ {
			before, was := places(), version()
			s.send(s.tuple(n, n))
			after, is := places(), version()
			moved := false
			for peer, place := range before {
				moved = moved || after[peer] != place
			}
			if moved != (was != is) {
				s.Fatalf("peer %d: tuples have moved: %v; the version was %d and is %d", n, moved, was, is)
			}
		}
	}})
}

func TestRemoveFromTable(t *testing.T) {
	for _, n := range []int{1, 8, 64, 200} {
		holdForDatagrams(t, rule{fmt.Sprintf("of %d", n), func(s *scene) {
			s.sendToPeers(slots + n)
			inSlots, inTable := s.layout(slots + n)
			gone := inTable[n/2]
			s.sendDirect(gone.peer)
			left := slices.Delete(slices.Clone(inTable), n/2, n/2+1)
			s.wantSlots(inSlots...)
			s.wantTable(left...)
			s.wantAllFound(append(inSlots, left...)...)
			if s.withAddress("find", gone.peer).Result != 0 {
				s.Error("the peer is still found")
			}
			s.unchangedBy("another removal", func() { s.sendDirect(gone.peer) })

			s.send(gone)
			s.wantTable(inTable...)
		}})
	}
}

func TestUpdateInTable(t *testing.T) {
	for _, n := range []int{1, 8, 64, 200} {
		holdForDatagrams(t, rule{fmt.Sprintf("of %d", n), func(s *scene) {
			s.sendToPeers(slots + n)
			inSlots, inTable := s.layout(slots + n)
			inTable[n/2].service, inTable[n/2].revNat = s.family.service(unusedNumber), unusedNumber
			s.send(inTable[n/2])
			s.wantSlots(inSlots...)
			s.wantTable(inTable...)
		}})
	}
}

// A slot that becomes free takes the next new peer.
func TestRemoveFromSlot(t *testing.T) {
	for slot := range slots {
		holdForDatagrams(t, rule{fmt.Sprintf("slot %d beside a table", slot), func(s *scene) {
			s.sendToPeers(slots + 2)
			inSlots, inTable := s.layout(slots + 2)
			s.sendDirect(inSlots[slot].peer)
			inSlots[slot] = tuple{}
			s.wantSlots(inSlots...)
			s.wantTable(slices.Clone(inTable)...)
			s.send(s.tuple(20, 20))
			inSlots[slot] = s.tuple(20, 20)
			s.wantSlots(inSlots...)
			s.wantTable(inTable...)
		}})
	}
}

// A tuple goes into the first free slot.
func TestFreeSlotsAreUsedFirst(t *testing.T) {
	for free := 1; free < 1<<slots; free++ {
		holdForDatagrams(t, rule{fmt.Sprintf("slots %03b free", free), func(s *scene) {
			s.sendToPeers(slots)
			inSlots, _ := s.layout(slots)
			for i := range slots {
				if free&(1<<i) != 0 {
					s.sendDirect(inSlots[i].peer)
					inSlots[i] = tuple{}
				}
			}
			s.wantSlots(inSlots...)
			for n := 10; slices.Contains(inSlots, tuple{}); n++ {
				s.send(s.tuple(n, n))
				inSlots[slices.Index(inSlots, tuple{})] = s.tuple(n, n)
				s.wantSlots(inSlots...)
				s.wantTable()
			}
			s.send(s.tuple(20, 20))
			s.wantTable(s.tuple(20, 20))
		}})
	}
}

// The last tuple gone, the socket is as new.
func TestRemoveAll(t *testing.T) {
	orders := map[string]func(n int) []int{
		"first come first": func(n int) []int { return sequence(n) },
		"last come first": func(n int) []int {
			order := sequence(n)
			slices.Reverse(order)
			return order
		},
		"from the middle": func(n int) []int {
			order := sequence(n)
			slices.SortStableFunc(order, func(a, b int) int { return abs(a-n/2) - abs(b-n/2) })
			return order
		},
	}
	for name, order := range orders {
		for _, n := range []int{1, slots, slots + 1, slots + 2, slots + 3, slots + 64} {
			holdForDatagrams(t, rule{name + ", " + strconv.Itoa(n), func(s *scene) {
				for range 2 {
					s.sendToPeers(n)
					left := n
					for _, peer := range order(n) {
						s.sendDirect(s.family.backend(peer))
						left--
						if got := len(s.state().peers()); got != left {
							s.Fatalf("%d tuples left, want %d", got, left)
						}
					}
				}
				s.balance()
			}})
		}
	}
}

// sequence returns 1 to n.
func sequence(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

func abs(n int) int { return max(n, -n) }
