// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// rejected checks that a call is rejected with ENOMEM and changes nothing: not
// what sockets hold, not the legacy maps, not the counters.
func (s *scene) rejected(what string, call func() unix.Errno) {
	s.Helper()
	counts, hash := s.h.counts(s.T), len(s.hash())
	for _, x := range s.subjects {
		defer func(before state) {
			s.Helper()
			x.unchangedSince(before, what)
		}(x.state())
	}
	if err := call(); err != unix.ENOMEM {
		s.Errorf("%s: %v, want %v", what, err, unix.ENOMEM)
	}
	s.counted(counts)
	if got := len(s.hash()); got != hash {
		s.Errorf("%s: rejected, but the legacy maps hold %d entries, %d before", what, got, hash)
	}
}

// A full overflow map rejects what needs room in it, and harms nobody.
func TestFullOverflowMap(t *testing.T) {
	const room = 4
	const full = slots + room
	h := load(t, options{overflow: room, programs: []string{
		"connect", "sendmsg", "sendmsg_direct", "find", "release", "release_step",
	}})
	for _, r := range []rule{
		{"a send to one more peer is rejected and changes nothing", func(s *scene) {
			s.sendToPeers(full)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(full+1, full+1)) })
			s.wantAllFound(s.state().peers()...)
			s.counted(counts{stored: full, overflowStored: room})
		}},
		{"a connect that has to keep what was the former connection is rejected and changes nothing", func(s *scene) {
			s.connect(s.tuple(20, 20))
			s.connect(s.tuple(21, 21))
			s.sendToPeers(full)
			s.rejected("connect", func() unix.Errno { return s.tryConnect(s.tuple(22, 22)) })
			s.wantConn(s.tuple(21, 21))
		}},
		{"a connect that keeps nothing succeeds", func(s *scene) {
			s.sendToPeers(full)
			s.connect(s.tuple(20, 20))
			s.connect(s.tuple(21, 20))
			s.wantConn(s.tuple(21, 20))
		}},
		{"the latest service of a peer still wins", func(s *scene) {
			s.sendToPeers(full)
			s.send(s.tuple(20, 1), s.tuple(21, full), s.tuple(22, slots+2), s.tuple(23, slots+1))
			s.wantSlots(s.tuple(20, 1), s.tuple(2, 2), s.tuple(3, 3))
			s.wantChain(s.tuple(21, 7), s.tuple(6, 6), s.tuple(22, 5), s.tuple(23, 4))
		}},
		{"sends to peers of the chain succeed without an exchange", func(s *scene) {
			s.sendToPeers(full)
			inSlots, chain := s.layout(full)
			s.sendTimes(chain[1], 3*exchangeInterval)
			s.wantSlots(inSlots...)
			s.wantChain(chain...)
			s.counted(counts{stored: full, overflowStored: room})
		}},
		{"other sockets use their slots", func(s *scene) {
			other := s.another()
			s.sendToPeers(full)
			for n := 1; n <= slots; n++ {
				other.send(s.tuple(n, n))
			}
			other.connect(s.tuple(20, 20))
			s.rejected("send on another socket", func() unix.Errno { return other.trySend(s.tuple(9, 9)) })
			other.wantPeers(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3))
		}},
		{"other sockets keep their chains", func(s *scene) {
			other := s.another()
			for n := 1; n <= slots+2; n++ {
				other.send(s.tuple(n, n))
			}
			s.sendToPeers(slots + 2)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(9, 9)) })
			other.wantAllFound(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4), s.tuple(5, 5))
		}},
		{"a socket has the cookie of its chain before an entry exists, for a sweep that comes in between", func(s *scene) {
			other := s.another()
			for n := 1; n <= full; n++ {
				other.send(s.tuple(n, n))
			}
			s.sendToPeers(slots)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(9, 9)) })
			var p harnessRevskPeersValue
			if _, err := s.h.stored(harnessMapRevskPeers, s.fd, &p); err != nil {
				s.Fatal(err)
			}
			if p.Cookie != s.cookie {
				s.Errorf("the entry was tried with the cookie %d on the socket, want %d", p.Cookie, s.cookie)
			}
		}},
		{"a removal makes room", func(s *scene) {
			s.sendToPeers(full)
			s.sendDirect(s.family.backend(full - 1))
			s.send(s.tuple(9, 9))
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(10, 10)) })
			s.sendDirect(s.family.backend(1))
			s.send(s.tuple(11, 11))
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(12, 12)) })
		}},
		{"the release of another socket makes room", func(s *scene) {
			other := s.another()
			for n := 1; n <= full; n++ {
				other.send(s.tuple(n, n))
			}
			s.sendToPeers(slots)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(4, 4)) })
			other.release()
			s.send(s.tuple(4, 4), s.tuple(5, 5), s.tuple(6, 6), s.tuple(7, 7))
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(8, 8)) })
		}},
		{"a rejected send in mode dual leaves no legacy entry", func(s *scene) {
			s.setMode(dual)
			s.sendToPeers(full)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(9, 9)) })
		}},
		{"a rejected connect in mode dual leaves no legacy entry", func(s *scene) {
			s.setMode(dual)
			s.connect(s.tuple(20, 20))
			s.connect(s.tuple(21, 21))
			s.sendToPeers(full)
			s.rejected("connect", func() unix.Errno { return s.tryConnect(s.tuple(22, 22)) })
		}},
	} {
		t.Run(r.name, func(t *testing.T) {
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) { r.play(newScene(t, h, f, false)) })
			}
		})
	}
}

// exhaust allocates all memory that the socket may have for storage (optmem_max),
// and returns what gives it back.
func exhaust(t *testing.T, sock *socket) (restore func()) {
	t.Helper()
	var held []*ebpf.Map
	restore = func() {
		for _, m := range held {
			// Closing gives the memory back too, but later.
			_ = m.Delete(uint32(sock.fd))
			_ = m.Close()
		}
		held = nil
	}
	t.Cleanup(func() { restore() })
	u8 := &btf.Int{Name: "u8", Size: 1}
	for size := uint32(4096); size >= 8; size /= 2 {
		for {
			m, err := ebpf.NewMap(&ebpf.MapSpec{
				Name: "filler", Type: ebpf.SkStorage, KeySize: 4, ValueSize: size, Flags: unix.BPF_F_NO_PREALLOC,
				Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
				Value: &btf.Array{Index: &btf.Int{Name: "u32", Size: 4}, Type: u8, Nelems: size},
			})
			must(t, err)
			held = append(held, m)
			err = m.Put(uint32(sock.fd), make([]byte, size))
			if errors.Is(err, unix.ENOMEM) {
				break
			}
			must(t, err)
		}
	}
	return restore
}

// A failed allocation rejects the call: a connection whose replies would carry the
// wrong address is worse than none.
func TestNoMemoryForStorage(t *testing.T) {
	holdForAll(t,
		rule{"a first connect is rejected and changes nothing", func(s *scene) {
			restore := exhaust(s.T, s.socket)
			s.rejected("connect", func() unix.Errno { return s.tryConnect(s.tuple(1, 1)) })
			restore()
			s.connect(s.tuple(1, 1))
			s.wantConn(s.tuple(1, 1))
			s.counted(counts{stored: 1})
		}},
		rule{"a rejected connect in mode dual leaves no legacy entry", func(s *scene) {
			s.setMode(dual)
			exhaust(s.T, s.socket)
			s.rejected("connect", func() unix.Errno { return s.tryConnect(s.tuple(1, 1)) })
		}},
		rule{"a connect that needs no more memory succeeds", func(s *scene) {
			s.connect(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.connect(s.tuple(2, 1))
			s.wantConn(s.tuple(2, 1))
		}},
		rule{"other sockets have their own memory", func(s *scene) {
			other := s.another()
			exhaust(s.T, s.socket)
			other.connect(s.tuple(1, 1))
			other.wantConn(s.tuple(1, 1))
		}},
	)
	holdForDatagrams(t,
		rule{"a first send is rejected and changes nothing", func(s *scene) {
			restore := exhaust(s.T, s.socket)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(1, 1)) })
			restore()
			s.send(s.tuple(1, 1))
			s.wantPeers(s.tuple(1, 1))
		}},
		rule{"a rejected send in mode dual leaves no legacy entry", func(s *scene) {
			s.setMode(dual)
			exhaust(s.T, s.socket)
			s.rejected("send", func() unix.Errno { return s.trySend(s.tuple(1, 1)) })
		}},
		rule{"a connect elsewhere that cannot keep the former connection is rejected", func(s *scene) {
			s.connect(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.rejected("connect", func() unix.Errno { return s.tryConnect(s.tuple(2, 2)) })
			s.wantConn(s.tuple(1, 1))
		}},
		rule{"sends to known and to more peers need no more of the socket's memory", func(s *scene) {
			s.send(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.sendToPeers(slots + 2)
			s.wantAllFound(s.tuple(1, 1), s.tuple(2, 2), s.tuple(3, 3), s.tuple(4, 4), s.tuple(5, 5))
		}},
	)
	holdForStreams(t,
		rule{"a stream socket that connects elsewhere needs no more memory", func(s *scene) {
			s.connect(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.connect(s.tuple(2, 2))
			s.wantConn(s.tuple(2, 2))
		}},
	)
}
