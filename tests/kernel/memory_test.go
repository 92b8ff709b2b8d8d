// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

const optmemMax = "/proc/sys/net/core/optmem_max"

// noSocketMemory makes every further allocation of storage for a socket fail, until the function that
// it returns is called, or the end of the test.
func noSocketMemory(t *testing.T) (restore func()) {
	t.Helper()
	// Less than any storage takes, and enough for the control messages of the servers.
	restore = setOptmem(t, "100")
	t.Cleanup(restore)
	return restore
}

func setOptmem(t *testing.T, value string) (restore func()) {
	t.Helper()
	var old []byte
	inOptmemNetns(t, func() error {
		var err error
		if old, err = os.ReadFile(optmemMax); err != nil {
			return err
		}
		return os.WriteFile(optmemMax, []byte(value), 0)
	})
	_, err := strconv.Atoi(strings.TrimSpace(string(old)))
	require.NoError(t, err, optmemMax)
	return func() { inOptmemNetns(t, func() error { return os.WriteFile(optmemMax, old, 0) }) }
}

// inOptmemNetns runs a function where the setting is: each network namespace has its own since Linux
// 6.8; before, all share that of the first one.
func inOptmemNetns(t *testing.T, f func() error) {
	t.Helper()
	if _, err := os.Stat(optmemMax); err == nil {
		require.NoError(t, f())
		return
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the namespace with it.
		runtime.LockOSThread()
		netns, err := os.Open("/proc/1/ns/net")
		if err == nil {
			defer netns.Close()
			err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	require.NoError(t, <-done)
}

func (s *scene) rejectedNoMemory(err error, rejections int) {
	s.Helper()
	assert.ErrorIs(s, err, rejection(s.T, unix.ENOMEM))
	assert.Equal(s, s.before.RejectedNoMemory+uint64(rejections), s.counters().RejectedNoMemory)
}

func TestNoSocketMemory(t *testing.T) {
	hold(t, either, rule{name: "rejects connect with ENOMEM, counts it and leaks nothing", notLegacy: storesNothing, play: func(s *scene) {
		a := s.service()
		x := s.socket()
		restore := noSocketMemory(s.T)
		s.rejectedNoMemory(x.tryConnect(a.front), 1)
		_, err := x.tryPeername()
		assert.ErrorIs(s, err, unix.ENOTCONN)
		assert.Zero(s, x.tuples())
		assert.Zero(s, s.hashEntries())
		restore()
		x.connect(a.front)
		s.connected(x, a)
	}})
	hold(t, udp,
		rule{name: "rejects sendmsg with ENOMEM, counts it and leaks nothing", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			restore := noSocketMemory(s.T)
			s.rejectedNoMemory(x.trySendTo(a.front, "lost"), 1)
			assert.Zero(s, x.tuples())
			assert.Zero(s, s.hashEntries())
			restore()
			s.asksService(x, a)
		}},
		rule{name: "rejects a reconnect with ENOMEM and keeps the old association", notLegacy: storesNothing, play: func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			restore := noSocketMemory(s.T)
			s.rejectedNoMemory(x.tryConnect(b.front), 1)
			s.connected(x, a)
			assert.Equal(s, 1, x.tuples())
			restore()
			x.connect(b.front)
			s.connected(x, b)
		}},
		rule{name: "rejects a send by a connected socket and keeps the connection", notLegacy: storesNothing, play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			noSocketMemory(s.T)
			s.rejectedNoMemory(x.trySendTo(b.front, "lost"), 1)
			s.connected(x, a)
			assert.Equal(s, 1, x.tuples())
		}},
		rule{name: "does not concern sockets that have their storage", notLegacy: storesNothing, play: func(s *scene) {
			a, b := s.service(), s.service()
			x, y := s.socket(), s.socket()
			x.connect(a.front)
			s.asksService(y, a)
			noSocketMemory(s.T)
			s.connected(x, a)
			for range 12 {
				s.asksService(y, s.service())
			}
			s.asksService(y, b)
		}},
		rule{name: "does not concern what needs no storage", play: func(s *scene) {
			x := s.socket()
			noSocketMemory(s.T)
			x.connect(s.plainServer())
			s.talks(x, s.plainServer(), s.plainServer())
		}},
	)
}

func TestFullOverflowMap(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) {
			holdIn(t, mode, unix.IPPROTO_UDP, (*scene).overflows)
		})
	}
}

// overflows fills the overflow map and looks at who notices.
func (s *scene) overflows() {
	all := s.publishMany(64)
	few := s.socket()
	for _, svc := range all[:3] {
		s.asksService(few, svc)
	}
	before := s.socket()
	for _, svc := range all[:8] {
		s.asksService(before, svc)
	}

	hogs, victim, at := s.fillOverflow(all)
	c := s.counters()
	require.Equal(s, s.before.RejectedNoMemory+1, c.RejectedNoMemory)
	require.EqualValues(s, overflowEntries, c.OverflowStored-c.OverflowRemoved)
	held := s.hashEntries()

	// A send that does not fit is rejected, every time, and leaves nothing.
	for i := range 3 {
		s.rejectedNoMemory(victim.trySendTo(all[at].front, "lost"), 2+i)
	}
	s.rejectedNoMemory(before.trySendTo(all[10].front, "lost"), 5)
	assert.Equal(s, held, s.hashEntries())
	// Whoever needs no room does not notice: not the socket itself, not others, not new ones.
	for _, svc := range all[:at] {
		s.asksService(victim, svc)
	}
	for range 3 {
		for _, svc := range all[:8] {
			s.asksService(before, svc)
		}
	}
	for _, svc := range all[:3] {
		s.asksService(few, svc)
	}
	fresh := s.socket()
	for _, svc := range all[20:23] {
		s.asksService(fresh, svc)
	}
	s.rejectedNoMemory(fresh.trySendTo(all[23].front, "lost"), 6)
	connected := s.socket()
	connected.connect(all[30].front)
	s.connected(connected, all[30])
	// Another service of a peer that is in the chain takes no room.
	other := &service{front: s.nowhere(), backend: all[7].backend, revNat: 5000}
	s.publish(other)
	defer s.delete(other)
	s.asksService(before, other)
	s.asksService(before, all[7])

	// As soon as somebody leaves, there is room.
	hogs[0].close()
	s.asksService(victim, all[at])
	s.asksService(before, all[10])
}

// fillOverflow opens sockets that send to all services until the overflow map is full, and returns
// them, with the one that did not get what it wanted and the number of the service where it ended.
func (s *scene) fillOverflow(all []*service) (hogs []*socket, victim *socket, at int) {
	s.Helper()
	for range overflowEntries {
		x := s.socket()
		hogs = append(hogs, x)
		for i, svc := range all {
			err := x.trySendTo(svc.front, "fill")
			if err != nil {
				require.ErrorIs(s, err, rejection(s.T, unix.ENOMEM))
				s.drain(x, i)
				return hogs, x, i
			}
		}
	}
	s.Fatal("the overflow map never became full")
	return nil, nil, 0
}

// drain receives n answers.
func (s *scene) drain(x *socket, n int) {
	s.Helper()
	for range n {
		x.receive()
	}
}
