// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// holding is what a socket holds when it is released.
type holding struct {
	name   string
	stream bool // streams can hold it too
	take   func(s *scene, x *socket)
	tuples int
	zeroed bool // its destination is one that the kernel zeroes, and counted as such
}

var holdings = []holding{
	{name: "a connection", stream: true, tuples: 1, zeroed: true, take: func(s *scene, x *socket) {
		x.connect(s.service().front)
	}},
	{name: "a service sent to", tuples: 1, take: func(s *scene, x *socket) {
		s.asksService(x, s.service())
	}},
	{name: "a table", tuples: 12, take: func(s *scene, x *socket) {
		for range 12 {
			s.asksService(x, s.service())
		}
	}},
	{name: "a connection and a table", tuples: 16, zeroed: true, take: func(s *scene, x *socket) {
		for range 12 {
			x.connect(s.service().front)
		}
		for range 4 {
			x.sendTo(s.service().front, "elsewhere")
		}
	}},
}

// ending is a way to end a socket.
type ending struct {
	name string
	end  func(s *scene, x *socket)
	// zeroes: before the release the kernel zeroes the destination of a datagram socket, or of a
	// stream too.
	zeroes, zeroesStream bool
	streamOnly           bool
}

var endings = []ending{
	{name: "close", end: func(_ *scene, x *socket) { x.close() }},
	{name: "close of the last of two descriptors", end: func(s *scene, x *socket) {
		fd, err := unix.FcntlInt(uintptr(x.fd), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(s, err)
		x.close()
		assert.Equal(s, s.before.Released, s.counters().Released)
		require.NoError(s, unix.Close(fd))
	}},
	{name: "exit of a process that has inherited it", end: func(s *scene, x *socket) {
		c := s.spawn(errand{}, x)
		x.close()
		assert.Equal(s, s.before.Released, s.counters().Released)
		c.exit()
	}},
	{name: "SIGKILL of a process that has inherited it", end: func(s *scene, x *socket) {
		c := s.spawn(errand{}, x)
		x.close()
		c.kill()
	}},
	{name: "loss in flight to another process", end: func(s *scene, x *socket) { s.passedAway(x) }},
	{name: "shutdown and close", end: func(_ *scene, x *socket) {
		_ = unix.Shutdown(x.fd, unix.SHUT_RDWR)
		x.close()
	}},
	{name: "disconnect (AF_UNSPEC) and close", zeroes: true, zeroesStream: true, end: func(_ *scene, x *socket) {
		x.disconnect()
		x.close()
	}},
	{name: "abort (SOCK_DESTROY) and close", zeroes: true, end: func(s *scene, x *socket) {
		remote := netip.AddrPortFrom(s.any(), 0)
		if conn, err := unix.Getpeername(x.fd); err == nil && conn != nil {
			remote = s.actualPeer(x)
		}
		x.abort(x.sockname(), remote)
		x.close()
	}},
	{name: "a reset", streamOnly: true, end: func(s *scene, x *socket) {
		x.send(s.question())
		x.readable()
		x.close() // with an answer that was not read
	}},
}

// actualPeer is the backend that a socket is connected to by way of the latest service.
func (s *scene) actualPeer(x *socket) netip.AddrPort {
	s.Helper()
	front := x.peername()
	for _, svc := range s.services {
		if svc.front == front {
			return svc.backend
		}
	}
	s.Fatalf("connected to %v, which is no service", front)
	return netip.AddrPort{}
}

func TestRelease(t *testing.T) {
	for _, end := range endings {
		t.Run("by "+end.name, func(t *testing.T) {
			for _, h := range holdings {
				if end.streamOnly && !h.stream {
					continue
				}
				t.Run("of "+h.name, func(t *testing.T) {
					for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
						t.Run(mode.String(), func(t *testing.T) {
							if !end.streamOnly {
								holdIn(t, mode, unix.IPPROTO_UDP, h.released(end, end.zeroes))
							}
							if h.stream {
								holdIn(t, mode, unix.IPPROTO_TCP, h.released(end, end.zeroesStream))
							}
						})
					}
				})
			}
		})
	}
}

// released checks that a release leaves nothing in any map and counts all that the socket held.
func (h holding) released(end ending, zeroes bool) func(s *scene) {
	return func(s *scene) {
		x := s.socket()
		h.take(s, x)
		require.Equal(s, h.tuples, x.tuples())
		held := s.counters()
		require.Equal(s, s.before.Live()+int64(h.tuples), held.Live(), "tuples counted as live")
		if s.mode == loader.ModeDual {
			require.Equal(s, h.tuples, s.hashEntries(), "entries in the legacy maps")
		}

		end.end(s, x)

		becomes(s, held.Released+uint64(h.tuples), s.released, "tuples counted as released")
		want := held.ReleaseZeroed
		if h.zeroed && zeroes {
			want++
		}
		becomes(s, want, s.zeroed, "releases with a zeroed destination")
		s.balance()
	}
}

func TestReleaseOfManySockets(t *testing.T) {
	n := scaled(200)
	play := func(e func(a *service) errand, tuples int) func(s *scene) {
		return func(s *scene) {
			a := s.service()
			work := e(a)
			work.Sockets = n
			c := s.spawn(work, nil)
			assert.Equal(s, s.before.Stored+uint64(n*tuples), s.counters().Stored)
			c.kill()
			becomes(s, s.before.Released+uint64(n*tuples), s.released, "tuples counted as released")
		}
	}
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Run("by SIGKILL of a process that has connected them", func(t *testing.T) {
				connect := func(a *service) errand { return errand{Connect: a.front} }
				holdIn(t, mode, unix.IPPROTO_UDP, play(connect, 1))
				holdIn(t, mode, unix.IPPROTO_TCP, play(connect, 1))
			})
			t.Run("by SIGKILL of a process that has sent by them", func(t *testing.T) {
				send := func(a *service) errand { return errand{Send: a.front} }
				holdIn(t, mode, unix.IPPROTO_UDP, play(send, 1))
			})
		})
	}
}

func TestReleaseWhileTheSocketIsInUse(t *testing.T) {
	hold(t, udp, rule{name: "waits for the receive that still runs", notLegacy: storesNothing, play: func(s *scene) {
		a := s.service()
		x := s.socket()
		x.connect(a.front)
		done := make(chan error)
		go func() {
			_, _, err := x.tryReceive(0)
			done <- err
		}()
		time.Sleep(10 * tick)
		// Ends the receive: a close alone does not.
		require.NoError(s, unix.Shutdown(x.fd, unix.SHUT_RDWR))
		x.close()
		<-done
		becomes(s, s.before.Released+1, s.released, "tuples counted as released")
	}})
}

// hashEntries counts what the legacy maps hold more than before the scene.
func (s *scene) hashEntries() int {
	s.Helper()
	return legacyCount(s.T) - s.hashed
}
