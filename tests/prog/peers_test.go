// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
)

// exchangeInterval is EXCHANGE_INTERVAL of peers.h.
const exchangeInterval = 16

// layout is where n tuples are that came in this order: the first in the slots,
// the last at the head of the chain.
func (s *scene) layout(n int) (inSlots, chain []tuple) {
	for i := 1; i <= n; i++ {
		if i <= slots {
			inSlots = append(inSlots, s.tuple(i, i))
		} else {
			chain = slices.Insert(chain, 0, s.tuple(i, i))
		}
	}
	return inSlots, chain
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

// Insert and find: the slots first, then the chain.
func TestFillSlotsThenChain(t *testing.T) {
	for _, n := range []int{1, slots - 1, slots, slots + 1, slots + 2, slots + 3, slots + 64, slots + 1000} {
		holdForDatagrams(t, rule{fmt.Sprintf("%d peers", n), func(s *scene) {
			s.sendToPeers(n)
			inSlots, chain := s.layout(n)
			s.wantSlots(inSlots...)
			s.wantChain(chain...)
			s.wantAllFound(append(inSlots, chain...)...)
			s.counted(counts{stored: n, overflowStored: len(chain)}.withoutZeros())

			var p harnessRevskPeersValue
			if _, err := s.h.stored(harnessMapRevskPeers, s.fd, &p); err != nil {
				s.Fatal(err)
			}
			if hasCookie := p.Cookie != 0; hasCookie != (n > slots) {
				s.Errorf("with a chain of %d the storage has the cookie %d", len(chain), p.Cookie)
			}
		}})
	}
}

// position is a place in a chain of n tuples.
type position struct {
	name string
	of   func(n int) int
}

var positions = []position{
	{"head", func(int) int { return 0 }},
	{"second", func(n int) int { return min(1, n-1) }},
	{"middle", func(n int) int { return n / 2 }},
	{"last but one", func(n int) int { return max(0, n-2) }},
	{"tail", func(n int) int { return n - 1 }},
}

// forEachPosition plays a rule for each place in chains of each length.
func forEachPosition(t *testing.T, play func(s *scene, inSlots, chain []tuple, at int)) {
	t.Helper()
	for _, n := range chainLengths {
		if n == 0 {
			continue
		}
		for _, p := range positions {
			holdForDatagrams(t, rule{fmt.Sprintf("%s of %d", p.name, n), func(s *scene) {
				s.sendToPeers(slots + n)
				inSlots, chain := s.layout(slots + n)
				play(s, inSlots, chain, p.of(n))
			}})
		}
	}
}

func TestRemoveFromChain(t *testing.T) {
	forEachPosition(t, func(s *scene, inSlots, chain []tuple, at int) {
		gone := chain[at]
		s.sendDirect(gone.peer)
		chain = slices.Delete(chain, at, at+1)
		s.wantSlots(inSlots...)
		s.wantChain(chain...)
		s.wantAllFound(append(inSlots, chain...)...)
		if s.withAddress("find", gone.peer).Result != 0 {
			s.Error("the peer is still found")
		}
		s.unchangedBy("another removal", func() { s.sendDirect(gone.peer) })

		s.send(gone)
		s.wantChain(slices.Insert(chain, 0, gone)...)
	})
}

func TestUpdateInChain(t *testing.T) {
	forEachPosition(t, func(s *scene, inSlots, chain []tuple, at int) {
		chain[at].service, chain[at].revNat = s.family.service(unusedNumber), unusedNumber
		s.send(chain[at])
		s.wantSlots(inSlots...)
		s.wantChain(chain...)
	})
}

// A slot that becomes free takes the head of the chain.
func TestRemoveFromSlot(t *testing.T) {
	for _, n := range chainLengths {
		for slot := range slots {
			holdForDatagrams(t, rule{fmt.Sprintf("slot %d with a chain of %d", slot, n), func(s *scene) {
				s.sendToPeers(slots + n)
				inSlots, chain := s.layout(slots + n)
				gone := inSlots[slot]
				s.sendDirect(gone.peer)
				if n > 0 {
					inSlots[slot], chain = chain[0], chain[1:]
				} else {
					inSlots[slot] = tuple{}
				}
				s.wantSlots(inSlots...)
				s.wantChain(chain...)
				want := counts{stored: slots + n, droppedDirect: 1, overflowStored: n}
				if n > 0 {
					want[overflowRemoved] = 1
				}
				s.counted(want.withoutZeros())

				s.send(gone)
				if n == 0 {
					inSlots[slot] = gone
				} else {
					chain = slices.Insert(chain, 0, gone)
				}
				s.wantSlots(inSlots...)
				s.wantChain(chain...)
			}})
		}
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
				s.wantChain()
			}
			s.send(s.tuple(20, 20))
			s.wantChain(s.tuple(20, 20))
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

func TestExchange(t *testing.T) {
	holdForDatagrams(t,
		rule{"a slot hit is no chain hit", func(s *scene) {
			s.sendToPeers(slots + 1)
			for range 2 * exchangeInterval {
				s.send(s.tuple(1, 1), s.tuple(3, 3))
			}
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(4, 4))
		}},
		rule{"hits of all peers of the chain count together", func(s *scene) {
			s.sendToPeers(slots + 2)
			for i := range exchangeInterval {
				s.send(s.tuple(4+i%2, 4+i%2))
			}
			s.wantSlots(s.tuple(5, 5), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(1, 1), s.tuple(4, 4))
		}},
		rule{"a tuple from a chain of one changes places", func(s *scene) {
			s.sendToPeers(slots + 1)
			s.sendTimes(s.tuple(4, 4), exchangeInterval-1)
			s.wantSlots(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(4, 4))
			s.send(s.tuple(4, 4))
			s.wantSlots(s.tuple(4, 4), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(1, 1))
			s.counted(counts{stored: 4, overflowStored: 2, overflowRemoved: 1})
		}},
		rule{"the slots take turns", func(s *scene) {
			const n = slots + 5
			s.sendToPeers(n)
			inSlots, chain := s.layout(n)
			for turn := range 2*slots + 1 {
				hot := chain[len(chain)-1]
				slot := turn % slots
				s.sendTimes(hot, exchangeInterval-1)
				s.wantSlots(inSlots...)
				s.wantChain(chain...)
				s.send(hot)
				chain = slices.Insert(chain[:len(chain)-1], 0, inSlots[slot])
				inSlots[slot] = hot
				s.wantSlots(inSlots...)
				s.wantChain(chain...)
			}
		}},
		rule{"the tuple that moves has the time of the last send", func(s *scene) {
			s.sendToPeers(slots)
			s.send(s.tuple(4, 4).at(5000))
			s.sendTimes(s.tuple(4, 4).at(6000), exchangeInterval)
			s.wantSlots(s.tuple(4, 4).at(6000), s.tuple(2, 2), s.tuple(3, 3))
		}},
		rule{"a peer that gets most of the sends is in a slot most of the time", func(s *scene) {
			const n = slots + 10
			s.sendToPeers(n)
			hits := 0
			for i := range 500 {
				if st := s.state(); slices.Contains(st.slots[:], s.tuple(n, n)) {
					hits++
				}
				s.send(s.tuple(n, n))
				if i%4 == 0 {
					s.send(s.tuple(1+i/4%n, 1+i/4%n))
				}
			}
			if hits < 400 {
				s.Errorf("in a slot for %d of 500 sends", hits)
			}
		}},
	)
	forEachPosition(t, func(s *scene, inSlots, chain []tuple, at int) {
		hot := chain[at]
		s.sendTimes(hot, exchangeInterval)
		chain = slices.Insert(slices.Delete(chain, at, at+1), 0, inSlots[0])
		inSlots[0] = hot
		s.wantSlots(inSlots...)
		s.wantChain(chain...)
	})
}

func (x *subject) sendTimes(t tuple, n int) {
	x.s.Helper()
	for range n {
		x.send(t)
	}
}

// An entry that another has put there under the key of a socket without a chain is not noticed: the hash
// is not asked.
func TestWithoutAChainTheOverflowMapIsNotAsked(t *testing.T) {
	holdForDatagrams(t, rule{"once the chain is gone", func(s *scene) {
		s.sendToPeers(slots + 1)
		inSlots, chain := s.layout(slots + 1)
		alone := chain[0]
		s.sendDirect(alone.peer)

		key := harnessRevskOverflowKey{Cookie: s.subject.cookie}
		peer := wireEndpoint(alone.peer)
		key.Peer, key.PeerPort = peer.Addr, peer.Port
		overflow := s.h.m(harnessMapRevskOverflow)
		must(s.T, overflow.Put(key, harnessRevskOverflowValue{Tuple: alone.wire()}))
		if s.withAddress("find", alone.peer).Result != 0 {
			s.Error("the entry is found")
		}
		s.sendDirect(alone.peer)
		must(s.T, overflow.Delete(key))
		s.wantSlots(inSlots...)
		s.wantChain()
	}})
}

// Who walks the overflow map without a lock sees the old tuple or the new one: an
// entry is never changed in place.
func TestChainEntryIsReplacedWhole(t *testing.T) {
	holdForDatagrams(t, rule{"another service of a peer in the chain makes another entry", func(s *scene) {
		s.sendToPeers(slots + 1)
		if out := s.withTuple("overflow_replace", s.tuple(9, slots+1)); out.Result != 1 {
			s.Errorf("the same entry was written again, or none: %d", out.Result)
		}
	}})
}
