// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
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

// A table that may not grow makes room by itself: no send is rejected, and nobody else notices.
func TestFullTable(t *testing.T) {
	h := load(t, options{
		constants: map[string]any{"table_classes": uint32(2), "table_maps": uint32(0)},
		programs:  []string{"connect", "sendmsg", "sendmsg_direct", "source", "find", "release"},
	})
	const room = slots + 16
	for _, r := range []rule{
		{"every send succeeds, and the last ones are remembered", func(s *scene) {
			s.sendToPeers(10 * room)
			st := s.state()
			if st.class != 2 || len(st.table) < 12 {
				s.Errorf("the table is of class %d and has %d tuples", st.class, len(st.table))
			}
			s.wantAllFound(s.tuple(10*room, 10*room))
			s.counted(counts{stored: 10 * room, evicted: 10*room - len(st.peers())})
		}},
		{"what makes room leaves the hash", func(s *scene) {
			s.setMode(mirror)
			s.sendToPeers(10 * room)
			s.wantHash(s.state().peers()...)
			s.release()
			s.wantHash()
		}},
		{"a peer that is sent to again and again stays", func(s *scene) {
			s.sendToPeers(slots)
			for n := 100; n < 1100; n++ {
				s.send(s.tuple(4, 4), s.tuple(n, n))
			}
			s.counted(counts{stored: slots + 1001, evicted: slots + 1001 - len(s.state().peers())})
		}},
		{"a peer that only answers keeps its service", func(s *scene) {
			s.serve(4)
			s.sendToPeers(slots)
			s.send(s.tuple(4, 4).at(999)) // all others are sent to later
			for n := 100; n < 1100; n++ {
				s.wantSource(s.family.backend(4), s.family.service(4))
				s.send(s.tuple(n, n))
			}
			s.wantSource(s.family.backend(4), s.family.service(4))
		}},
		{"the tuple of the peer that the kernel has the socket connected to stays", func(s *scene) {
			s.sendToPeers(slots)
			actual := s.tuple(4, 4)
			actual.peer = netip.AddrPortFrom(s.family.loopback.Unmap(), 9)
			must(s.T, unix.Connect(s.fd, sockaddr.Of(s.family.domain, netip.AddrPortFrom(s.family.loopback, 9))))
			s.send(actual)
			for n := 100; n < 1100; n++ {
				s.send(s.tuple(n, n))
			}
			if out := s.withAddress("find", actual.peer); out.Result == 0 {
				s.Errorf("%v is gone", actual)
			}
		}},
		{"in mode dual what makes room leaves the hash, too", func(s *scene) {
			s.setMode(dual)
			s.sendToPeers(10 * room)
			s.wantHash(s.state().peers()...)
		}},
		{"other sockets keep what they have", func(s *scene) {
			other := s.another()
			for n := 1; n <= room/2; n++ {
				other.send(s.tuple(n, n))
			}
			other.unchangedBy("another socket", func() { s.sendToPeers(10 * room) })
		}},
		{"a removal makes room", func(s *scene) {
			s.sendToPeers(slots + 8)
			s.sendDirect(s.family.backend(slots + 1))
			s.send(s.tuple(slots+1, slots+1))
			s.counted(counts{stored: slots + 9, droppedDirect: 1})
		}},
	} {
		t.Run(r.name, func(t *testing.T) {
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) { r.play(newScene(t, h, f, false)) })
			}
		})
	}
}

// Tuples move to their other bucket before one has to go: a table is nearly full by then.
func TestTableIsFullBeforeItEvicts(t *testing.T) {
	h := load(t, options{
		constants: map[string]any{"table_classes": uint32(5), "table_maps": uint32(1)},
		programs:  []string{"sendmsg", "release"},
	})
	const runs, room = 20, 128
	fill := 0
	for run := range runs {
		t.Run(strconv.Itoa(run), func(t *testing.T) {
			s := newScene(t, h, families[run%len(families)], false)
			for n := 1; h.counts(t)[evicted] == 0; n++ {
				s.send(s.tuple(n, 1000*run+n))
			}
			fill += len(s.state().table)
		})
	}
	if fill < runs*room*92/100 {
		t.Errorf("tables of %d places had %d tuples on average when the first had to go", room, fill/runs)
	}
}

// Without memory for the smallest table the slots make room.
func TestNoMemoryForATable(t *testing.T) {
	holdForDatagrams(t,
		rule{"the slot that was not used for longest makes room", func(s *scene) {
			s.sendToPeers(slots)
			s.send(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.send(s.tuple(9, 9))
			s.wantSlots(s.tuple(1, 1), s.tuple(9, 9), s.tuple(3, 3))
			s.counted(counts{stored: 4, evicted: 1})
		}},
		rule{"a slot whose peer only answers does not make room", func(s *scene) {
			s.serve(1)
			s.send(s.tuple(1, 1).at(999), s.tuple(2, 2), s.tuple(3, 3)) // all others are sent to later
			exhaust(s.T, s.socket)
			for n := 100; n < 110; n++ {
				s.wantSource(s.family.backend(1), s.family.service(1))
				s.send(s.tuple(n, n))
			}
			s.wantSource(s.family.backend(1), s.family.service(1))
		}},
		rule{"a table that cannot grow makes room", func(s *scene) {
			s.sendToPeers(slots + 1)
			exhaust(s.T, s.socket)
			s.sendToPeers(100)
			st := s.state()
			if st.class != 1 {
				s.Errorf("the table is of class %d", st.class)
			}
			s.counted(counts{stored: 100, evicted: 100 - len(st.peers())})
		}},
	)
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
		rule{"a send to a known peer needs no more of the socket's memory", func(s *scene) {
			s.send(s.tuple(1, 1))
			exhaust(s.T, s.socket)
			s.send(s.tuple(1, 1), s.tuple(2, 1))
			s.wantSlots(s.tuple(2, 1))
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
