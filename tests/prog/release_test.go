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
		rule{"counts conn, slots and chain, and empties the chain", func(s *scene) {
			s.connect(s.tuple(9, 9))
			s.sendToPeers(slots + 3)
			s.release()
			s.counted(counts{stored: 7, released: 7, overflowStored: 3, overflowRemoved: 3})
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
				overflowStored: 3, overflowRemoved: 3,
			})
		}},
		rule{"leaves the chains of other sockets alone", func(s *scene) {
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

var chainLengths = []int{0, 1, 2, 3, 64, 1000}

// Both ways of releasing a chain delete every tuple of it and no other.
func TestReleaseChain(t *testing.T) {
	for _, way := range []struct {
		name    string
		need    func(t *testing.T)
		release func(t *testing.T, x *subject, n int)
	}{
		{"step by step", func(*testing.T) {}, func(t *testing.T, x *subject, n int) {
			for i := range max(n, 1) {
				if more := x.releaseStep(); more != (i < n-1) {
					t.Fatalf("step %d of %d: more to come: %v", i+1, n, more)
				}
			}
		}},
		{"by bpf_loop", needBPFLoop, func(t *testing.T, x *subject, _ int) {
			x.s.h.run(t, bpfLoopProgram, x.input())
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			way.need(t)
			for _, n := range chainLengths {
				t.Run(strconv.Itoa(n), func(t *testing.T) {
					for _, f := range families {
						t.Run(f.name, func(t *testing.T) {
							s := newScene(t, shared, f, false)
							other := s.another()
							other.send(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
							s.sendToPeers(slots + n)

							out := s.withAddress("release", s.family.backend(unusedNumber))
							if (out.Result != 0) != (n > 0) {
								t.Errorf("release returned %d", out.Result)
							}
							way.release(t, s.subject, n)
							s.dead = true

							s.counted(counts{
								stored: slots + n + 4, released: slots + n,
								overflowStored: n + 1, overflowRemoved: n,
							}.withoutZeros())
							other.wantChain(s.tuple(4, 4))
						})
					}
				})
			}
		})
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
