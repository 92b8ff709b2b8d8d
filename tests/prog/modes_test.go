// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// inMode makes rules of scenes that begin in a mode.
func inMode(m mode, rules ...rule) []rule {
	var all []rule
	for _, r := range rules {
		all = append(all, rule{r.name, func(s *scene) {
			s.setMode(m)
			r.play(s)
		}})
	}
	return all
}

func TestModeStorage(t *testing.T) {
	holdForAll(t, inMode(storage,
		rule{"connect writes no hash", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantHash()
		}},
		rule{"getpeername does not read the hash", func(s *scene) {
			s.mayLeak = true
			s.serve(1)
			s.putHash(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
		}},
		rule{"connect to no service leaves the hash alone", func(s *scene) {
			s.mayLeak = true
			s.putHash(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"release leaves the hash alone", func(s *scene) {
			s.mayLeak = true
			s.connect(s.tuple(1, 1))
			s.putHash(s.tuple(1, 1))
			s.releaseWith(s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"the socket's cookie is not asked for", func(s *scene) {
			s.serve(1)
			asked := func(what string, out harnessHarnessOutput) {
				if out.CookieAsked != 0 {
					s.Errorf("%s has asked for the cookie", what)
				}
			}
			asked("connect", s.withTuple("connect", s.tuple(1, 1)))
			asked("getpeername", s.withAddress("peername", s.family.backend(1)))
			asked("recvmsg", s.withAddress("source", s.family.backend(1)))
			asked("sendmsg to no service", s.withAddress("sendmsg_direct", s.family.backend(1)))
			asked("connect to no service", s.withAddress("connect_direct", s.family.backend(1)))
			asked("release", s.withAddress("release", s.family.backend(1)))
		}},
	)...)
	holdForDatagrams(t, inMode(storage,
		rule{"sendmsg writes no hash", func(s *scene) {
			s.sendToPeers(slots + 1)
			s.wantHash()
		}},
		rule{"recvmsg does not read the hash", func(s *scene) {
			s.mayLeak = true
			s.serve(1)
			s.putHash(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"a drop leaves the hash alone", func(s *scene) {
			s.mayLeak = true
			s.send(s.tuple(1, 1))
			s.putHash(s.tuple(1, 1))
			s.sendDirect(s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"the release of a table leaves the hash alone", func(s *scene) {
			s.mayLeak = true
			s.sendToPeers(slots + 2)
			s.putHash(s.tuple(slots+2, slots+2))
			s.release()
			s.wantHash(s.tuple(slots+2, slots+2))
		}},
	)...)
}

// What both modes that write storage and hash have in common.
func TestModesDualAndMirror(t *testing.T) {
	for name, m := range map[string]mode{"dual": dual, "mirror": mirror} {
		t.Run(name, func(t *testing.T) { holdInBoth(t, m) })
	}
}

func holdInBoth(t *testing.T, m mode) {
	t.Helper()
	holdForAll(t, inMode(m,
		rule{"connect writes storage and hash", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"connect to another service with the same backend replaces both", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 1))
			s.wantConn(s.tuple(2, 1))
			s.wantHash(s.tuple(2, 1))
		}},
		rule{"connect to no service drops both", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantNoConn()
			s.wantHash()
		}},
		rule{"connect to no service keeps what is for another address", func(s *scene) {
			s.connect(s.tuple(1, 1))
			for _, other := range neighbours(s.family.backend(1)) {
				s.connectDirect(other)
			}
			s.wantConn(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"getpeername reads storage before the hash", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.putHash(s.tuple(2, 1))
			s.wantPeername(s.family.backend(1), s.family.service(1))
		}},
		rule{"getpeername falls back to the hash", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.putHash(s.tuple(2, 2))
			s.wantPeername(s.family.backend(2), s.family.service(2))
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2))
			s.mayLeak = true // what storage does not know of
		}},
		rule{"getpeername reports a connection though its service is gone, and leaves both alone", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.wantConn(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1))
			s.counted(counts{stored: 1})
		}},
		rule{"getpeername reports what only the hash has while its service stands, and leaves it there", func(s *scene) {
			s.mayLeak = true // what storage does not know of
			s.putHash(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
			s.serve(1)
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.counted(counts{})
		}},
		rule{"release deletes the entry of conn whatever the kernel has zeroed", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.releaseWith(netip.AddrPortFrom(s.family.services, 0))
			s.wantHash()
		}},
	)...)
	holdForStreams(t, inMode(m,
		rule{"connect of a stream socket elsewhere drops the former connection from both", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantHash(s.tuple(2, 2))
		}},
	)...)
	holdForDatagrams(t, inMode(m,
		rule{"connect elsewhere keeps the former connection in both", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantFormer(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2))
		}},
		rule{"connect that takes a tuple out of the peers keeps its entry", func(s *scene) {
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(1, 1))
			s.wantPeers()
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"sendmsg writes storage and hash", func(s *scene) {
			s.sendToPeers(slots + 2)
			s.wantPeers(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4), s.tuple(5, 5))
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4), s.tuple(5, 5))
		}},
		rule{"the latest service wins in both", func(s *scene) {
			s.sendToPeers(slots + 1)
			s.send(s.tuple(8, 1), s.tuple(9, 4))
			want := []tuple{s.tuple(8, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(9, 4)}
			s.wantPeers(want...)
			s.wantHash(want...)
		}},
		rule{"sendmsg to no service drops both", func(s *scene) {
			s.sendToPeers(slots + 2)
			s.sendDirect(s.family.backend(1))
			s.sendDirect(s.family.backend(4))
			s.wantPeers(s.tuple(2, 2), s.tuple(3, 3), s.tuple(5, 5))
			s.wantHash(s.tuple(2, 2), s.tuple(3, 3), s.tuple(5, 5))
		}},
		rule{"sendmsg to no service drops the connection to that address that the socket no longer has", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.sendDirect(s.family.backend(1))
			s.wantNoConn()
			s.wantHash()
		}},
		rule{"getpeername does not ask the hash about what was only sent", func(s *scene) {
			s.serve(1)
			s.send(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"recvmsg reads storage before the hash", func(s *scene) {
			s.serve(1, 2, 8, 9)
			s.send(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.putHash(s.tuple(8, 1))
			s.putHash(s.tuple(9, 2))
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.wantSource(s.family.backend(2), s.family.service(2))
		}},
		rule{"recvmsg falls back to the hash", func(s *scene) {
			s.serve(1)
			s.putHash(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.wantHash(s.tuple(1, 1))
			s.mayLeak = true // what storage does not know of
		}},
		rule{"recvmsg leaves what does not answer in both", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.now += answerTime + 1
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantPeers(s.tuple(1, 1).at(firstTime))
			s.wantHash(s.tuple(1, 1))
			s.serve(1)
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 1})
		}},
		rule{"recvmsg reports what only the hash has while its service stands, and leaves it there", func(s *scene) {
			s.mayLeak = true // what storage does not know of
			s.putHash(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
			s.serve(1)
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.counted(counts{})
		}},
		rule{"release deletes the entries of conn, slots and table", func(s *scene) {
			other := s.another()
			other.send(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
			s.connect(s.tuple(8, 8))
			s.connect(s.tuple(9, 9))
			s.sendToPeers(slots + 2)
			s.release()
			other.wantHash(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
		}},
		rule{"the socket's cookie is asked for once", func(s *scene) {
			for what, out := range map[string]harnessHarnessOutput{
				"connect":                s.withTuple("connect", s.tuple(1, 1)),
				"connect elsewhere":      s.withTuple("connect", s.tuple(2, 2)),
				"sendmsg":                s.withTuple("sendmsg", s.tuple(3, 3)),
				"recvmsg of no peer":     s.withAddress("source", s.family.backend(9)),
				"release of three peers": s.withAddress("release", s.family.backend(9)),
			} {
				if out.CookieAsked != 1 {
					s.Errorf("%s has asked for the cookie %d times", what, out.CookieAsked)
				}
			}
			s.dead = true
		}},
	)...)
}

func TestModeDual(t *testing.T) {
	holdForAll(t, inMode(dual,
		rule{"connect to no service ends what only the hash has", func(s *scene) {
			s.serve(1)
			s.putHash(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantHash()
			s.wantNoConn()
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.connect(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"release of a socket without conn deletes the entry for its destination", func(s *scene) {
			s.putHash(s.tuple(1, 1))
			s.releaseWith(s.family.backend(1))
			s.wantHash()
			s.counted(counts{})
		}},
	)...)
	holdForDatagrams(t, inMode(dual,
		rule{"sendmsg to no service ends what only the hash has", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(2, 2))
			s.putHash(s.tuple(1, 1))
			s.sendDirect(s.family.backend(1))
			s.wantHash(s.tuple(2, 2))
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.send(s.tuple(1, 1))
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2))
		}},
	)...)
}

func TestModeMirror(t *testing.T) {
	holdForAll(t, inMode(mirror,
		rule{"a socket without storage has nothing to do with the hash, and its cookie is not asked for", func(s *scene) {
			s.mayLeak = true
			s.putHash(s.tuple(1, 1))
			for _, call := range []string{"connect_direct", "sendmsg_direct", "release"} {
				if s.tcp && call == "sendmsg_direct" {
					continue
				}
				if out := s.withAddress(call, s.family.backend(1)); out.CookieAsked != 0 {
					s.Errorf("%s has asked for the cookie", call)
				}
				s.wantHash(s.tuple(1, 1))
			}
			s.counted(counts{})
		}},
		rule{"a connect to no service leaves what is for another peer than those of the socket", func(s *scene) {
			s.mayLeak = true
			s.connect(s.tuple(1, 1))
			s.putHash(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2))
		}},
	)...)
	holdForDatagrams(t, inMode(mirror,
		rule{"release of a socket that has only sent deletes the entry for its destination, too", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.putHash(s.tuple(2, 2))
			s.releaseWith(s.family.backend(2))
			s.wantHash()
		}},
		rule{"a former connection that makes way leaves the hash what the socket has sent to that peer", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.send(s.tuple(3, 1))
			s.connect(s.tuple(4, 4))
			s.wantPeers(s.tuple(3, 1).overtaken())
			s.wantHash(s.tuple(2, 2), s.tuple(3, 1), s.tuple(4, 4))
		}},
	)...)
}

// What the hash does not take rejects a call in mode dual, and is counted in mode mirror.
func TestAHashThatTakesNoMore(t *testing.T) {
	h := load(t, options{change: func(spec *ebpf.CollectionSpec) {
		for _, name := range []string{harnessMapCiliumLb4ReverseSk, harnessMapCiliumLb6ReverseSk} {
			spec.Maps[name].Type, spec.Maps[name].MaxEntries = ebpf.Hash, 1
		}
	}})
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t, h, f, false)
			s.setMode(mirror)
			s.another().putHash(s.tuple(9, 9))
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 2))
			s.wantConn(s.tuple(1, 1))
			s.wantPeers(s.tuple(2, 2))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.counted(counts{stored: 2, hashNotWritten: 2})
			s.setMode(dual)
			if err := s.tryConnect(s.tuple(3, 3)); err != unix.ENOMEM {
				s.Errorf("connect in mode dual: %v", err)
			}
			s.mayLeak = true
		})
	}
}

// While programs that write the hash alone have run, up to the mark, what sockets hold may be outdated.
func TestTheHashIsNewerThanWhatIsFromBeforeTheMark(t *testing.T) {
	for name, m := range map[string]mode{"dual": dual, "mirror": mirror} {
		t.Run(name, func(t *testing.T) {
			holdForAll(t, inMode(m,
				rule{"of the connection: another service with the same backend", func(s *scene) {
					s.serve(1, 2)
					s.connect(s.tuple(1, 1))
					s.putHash(s.tuple(2, 1))
					s.wantPeername(s.family.backend(1), s.family.service(1))
					s.setMark(s.now)
					s.wantPeername(s.family.backend(1), s.family.service(2))
					s.connect(s.tuple(1, 1))
					s.wantPeername(s.family.backend(1), s.family.service(1))
					s.wantHash(s.tuple(1, 1))
				}},
				rule{"but not without an entry, nor with one that says the same", func(s *scene) {
					s.serve(1)
					s.connect(s.tuple(1, 1))
					s.setMark(s.now)
					s.wantPeername(s.family.backend(1), s.family.service(1))
					s.connect(s.tuple(2, 2))
					s.wantPeername(s.family.backend(2), s.family.service(2))
				}},
			)...)
			holdForDatagrams(t, inMode(m,
				rule{"of what was sent: another service with the same backend", func(s *scene) {
					s.serve(1, 2)
					s.send(s.tuple(1, 1))
					s.putHash(s.tuple(2, 1))
					s.setMark(s.now)
					s.wantSource(s.family.backend(1), s.family.service(2))
					s.send(s.tuple(1, 1))
					s.wantSource(s.family.backend(1), s.family.service(1))
				}},
				rule{"of a connection to a peer that the socket had sent to", func(s *scene) {
					s.serve(1, 2)
					s.send(s.tuple(1, 1))
					s.putHash(s.tuple(2, 1))
					s.setMark(s.now)
					s.wantPeername(s.family.backend(1), s.family.service(2))
				}},
				rule{"of a connect that others have overtaken", func(s *scene) {
					s.serve(1, 4)
					for i := 1; i <= 3; i++ {
						s.connect(s.tuple(i, i))
					}
					s.setMark(s.now)
					s.wantPeername(s.family.backend(1), s.family.service(1))
					s.putHash(s.tuple(4, 1))
					s.wantPeername(s.family.backend(1), s.family.service(4))
				}},
				rule{"but not if it says what the socket has sent by: the connection to the same peer stands", func(s *scene) {
					s.serve(1, 2)
					s.connect(s.tuple(1, 1))
					s.send(s.tuple(2, 1))
					s.setMark(s.now)
					s.wantHash(s.tuple(2, 1))
					s.wantPeername(s.family.backend(1), s.family.service(1))
					s.wantSource(s.family.backend(1), s.family.service(2))
				}},
			)...)
		})
	}
}

func TestModeLegacy(t *testing.T) {
	holdForAll(t, inMode(legacy,
		rule{"connect writes the hash only", func(s *scene) {
			s.mayLeak = true
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantNoConn()
			if s.state().hasPeers {
				s.Error("the socket has storage for peers")
			}
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2))
			s.counted(counts{})
		}},
		rule{"connect to no service changes nothing", func(s *scene) {
			s.mayLeak = true
			s.connect(s.tuple(1, 1))
			s.connectDirect(s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"getpeername reads the hash only", func(s *scene) {
			s.mayLeak = true
			s.serve(1, 2)
			s.setMode(storage)
			s.connect(s.tuple(1, 1))
			s.setMode(legacy)
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.putHash(s.tuple(2, 1))
			s.wantPeername(s.family.backend(1), s.family.service(2))
			s.setMode(storage)
		}},
		rule{"getpeername drops what is stale", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.wantHash()
		}},
		rule{"release deletes the entry for the destination", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.releaseWith(s.family.backend(1))
			s.wantHash()
			s.counted(counts{})
		}},
		rule{"release deletes the entry for the destination and those of what another mode has stored", func(s *scene) {
			s.setMode(dual)
			s.connect(s.tuple(1, 1))
			s.setMode(legacy)
			s.connect(s.tuple(2, 2))
			s.releaseWith(s.family.backend(2))
			s.wantHash()
		}},
		rule{"release counts what another mode has stored", func(s *scene) {
			s.setMode(storage)
			s.connect(s.tuple(1, 1))
			s.setMode(legacy)
			s.release()
			s.counted(counts{stored: 1, released: 1})
		}},
		rule{"release does not find the entry if the kernel has zeroed the destination", func(s *scene) {
			s.mayLeak = true
			s.connect(s.tuple(1, 1))
			s.releaseWith(netip.AddrPortFrom(s.family.backend(1).Addr(), 0))
			s.wantHash(s.tuple(1, 1))
		}},
	)...)
	holdForDatagrams(t, inMode(legacy,
		rule{"sendmsg writes the hash only", func(s *scene) {
			s.mayLeak = true
			s.sendToPeers(slots + 1)
			if s.state().hasPeers {
				s.Error("the socket has storage for peers")
			}
			s.wantHash(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4))
			s.counted(counts{})
		}},
		rule{"the latest service of a peer wins", func(s *scene) {
			s.mayLeak = true
			s.send(s.tuple(1, 1), s.tuple(2, 1))
			s.wantHash(s.tuple(2, 1))
		}},
		rule{"calls end what another mode has stored of the peer, and nothing else", func(s *scene) {
			s.mayLeak = true
			s.setMode(storage)
			s.connect(s.tuple(1, 1))
			s.sendToPeers(slots + 3)
			s.setMode(legacy)
			s.connect(s.tuple(7, 2))
			s.wantPeers(s.tuple(1, 1), s.tuple(3, 3), s.tuple(4, 4), s.tuple(5, 5), s.tuple(6, 6))
			s.send(s.tuple(7, 3))
			s.wantPeers(s.tuple(1, 1), s.tuple(4, 4), s.tuple(5, 5), s.tuple(6, 6))
			s.sendDirect(s.family.backend(4))
			s.wantPeers(s.tuple(1, 1), s.tuple(5, 5), s.tuple(6, 6))
			s.connectDirect(s.family.backend(5))
			s.wantPeers(s.tuple(1, 1), s.tuple(6, 6))
			s.wantConn(s.tuple(1, 1))
			s.connect(s.tuple(7, 1))
			s.wantNoConn()
			s.wantPeers(s.tuple(6, 6))
			s.wantHash(s.tuple(7, 1), s.tuple(7, 2), s.tuple(7, 3))
			s.counted(counts{
				stored: 7, droppedReplaced: 4, droppedDirect: 2,
			})
		}},
		rule{"sendmsg to no service changes nothing", func(s *scene) {
			s.mayLeak = true
			s.send(s.tuple(1, 1))
			s.sendDirect(s.family.backend(1))
			s.wantHash(s.tuple(1, 1))
		}},
		rule{"recvmsg reads the hash only", func(s *scene) {
			s.mayLeak = true
			s.serve(1, 2)
			s.setMode(storage)
			s.send(s.tuple(1, 1))
			s.connect(s.tuple(1, 2))
			s.setMode(legacy)
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantSource(s.family.backend(2), s.family.backend(2))
			s.putHash(s.tuple(2, 1))
			s.wantSource(s.family.backend(1), s.family.service(2))
			s.setMode(storage)
		}},
		rule{"release empties the table that another mode has made", func(s *scene) {
			s.setMode(storage)
			s.sendToPeers(slots + 2)
			s.setMode(legacy)
			s.release()
			s.counted(counts{stored: 5, released: 5})
		}},
		rule{"recvmsg drops what is stale", func(s *scene) {
			s.send(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.wantHash()
		}},
		rule{"recvmsg leaves a source alone that the hash does not know", func(s *scene) {
			s.mayLeak = true
			s.serve(1)
			s.send(s.tuple(1, 1))
			for _, other := range neighbours(s.family.backend(1)) {
				s.wantSource(other, other)
			}
			s.wantHash(s.tuple(1, 1))
		}},
	)...)
}

// A hash entry that says the same already is not written again: an LRU replaces
// the element.
func TestHashEntryIsNotRewritten(t *testing.T) {
	holdForDatagrams(t, rule{"only what has changed is written", func(s *scene) {
		s.mayLeak = true
		rewritten := func(t tuple) bool { return s.withTuple("legacy_store", t).Result != 0 }
		first := s.tuple(1, 1)
		if !rewritten(first) {
			s.Error("the first entry was not written")
		}
		if rewritten(first.at(2000)) {
			s.Error("an entry that says the same was written again")
		}
		address, port, index := first, first, first
		address.service = s.family.service(2)
		port.service = netip.AddrPortFrom(first.service.Addr(), 81)
		index.revNat = 2
		for _, changed := range []tuple{address, port, index} {
			if !rewritten(changed) {
				s.Errorf("the entry was not written again for %v", changed)
			}
			s.wantHash(changed)
		}
	}})
}
