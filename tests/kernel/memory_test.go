// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
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

// A process with as many peers as it can have takes nothing from another: no send is refused, and nothing
// that others remember is gone.
func TestManyPeersOfANeighbour(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) {
			holdIn(t, mode, unix.IPPROTO_UDP, (*scene).neighbours)
		})
	}
}

func (s *scene) neighbours() {
	const sockets, peers, sends = 900, 120, 1000
	all := s.publishMany(peers)
	working := s.socket()
	for _, svc := range all[:8] {
		s.asksService(working, svc)
	}
	for i := range scaled(sockets) {
		x := s.socket()
		for _, svc := range all {
			require.NoError(s, x.trySendTo(svc.front, "fill"), "socket %d", i)
		}
	}
	before := s.counters()
	for i := range sends {
		s.asksService(working, all[i%peers])
	}
	now := s.counters()
	assert.Equal(s, before.RejectedNoMemory, now.RejectedNoMemory)
	assert.Equal(s, before.Evicted, now.Evicted)
}

// A peer that only answers keeps its service, while the socket sends to a thousand others, which its table has no room for.
func TestAPeerThatOnlyAnswers(t *testing.T) {
	hold(t, udp, rule{name: "keeps its service", notLegacy: storesNothing, play: func(s *scene) {
		const others = 1000
		s.Cleanup(setOptmem(s.T, "20480"))
		server := s.socket()
		server.bind(netip.AddrPortFrom(sandbox.Numbered(s.backends, 900), 7900))
		quiet := s.serviceTo(server.sockname())
		all := s.publishMany(others)
		x := s.socket()
		for _, svc := range all[:4] {
			s.asksService(x, svc) // the slots are taken
		}
		x.sendTo(quiet.front, "the only question")
		_, asker := server.receive()
		time.Sleep(revnat.TimeUnit) // of all that are sent to, it is the one of longest ago
		for i := range others + scaled(2*others) {
			s.asksService(x, all[i%others])
			q := s.question()
			server.sendTo(asker, q)
			answer, from := x.receive()
			require.Equal(s, q, answer)
			same(s, quiet.front, from, "who answers")
		}
		assert.NotEqual(s, s.before.Evicted, s.counters().Evicted, "there was room for all")
	}})
}
