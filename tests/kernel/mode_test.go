// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// What the rules of the other tests leave out for legacy mode: where the hash answers differently,
// and what it leaks.
func TestLegacyMode(t *testing.T) {
	leaks := func(name string, protocol, entries int, play func(s *scene, x *socket)) {
		t.Run(name, func(t *testing.T) {
			holdIn(t, loader.ModeLegacy, protocol, func(s *scene) {
				s.mayLeak = true
				x := s.socket()
				play(s, x)
				x.close()
				becomes(s, entries, s.hashEntries, "entries of a closed socket")
			})
		})
	}
	leaks("cleans up after a connected datagram socket", unix.IPPROTO_UDP, 0, func(s *scene, x *socket) {
		x.connect(s.service().front)
	})
	leaks("cleans up after a stream", unix.IPPROTO_TCP, 0, func(s *scene, x *socket) {
		x.connect(s.service().front)
	})
	leaks("leaks when a datagram socket is aborted", unix.IPPROTO_UDP, 1, func(s *scene, x *socket) {
		x.connect(s.service().front)
		x.abort(x.sockname(), s.actualPeer(x))
	})
	leaks("cleans up when a stream is aborted", unix.IPPROTO_TCP, 0, func(s *scene, x *socket) {
		x.connect(s.service().front)
		x.abort(x.sockname(), s.actualPeer(x))
	})
	leaks("leaks when a datagram socket is disconnected", unix.IPPROTO_UDP, 1, func(s *scene, x *socket) {
		x.connect(s.service().front)
		x.disconnect()
	})
	leaks("leaks when a stream is disconnected", unix.IPPROTO_TCP, 1, func(s *scene, x *socket) {
		x.connect(s.service().front)
		x.disconnect()
	})
	leaks("leaks when a socket reconnects", unix.IPPROTO_UDP, 1, func(s *scene, x *socket) {
		x.connect(s.service().front)
		x.connect(s.service().front)
	})
	leaks("leaks what an unconnected socket sent to", unix.IPPROTO_UDP, 5, func(s *scene, x *socket) {
		for range 5 {
			s.asksService(x, s.service())
		}
	})

	t.Run("takes a direct connection for one to the service", func(t *testing.T) {
		holdIn(t, loader.ModeLegacy, unix.IPPROTO_UDP, func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			x.connect(a.backend)
			same(s, a.front, x.peername(), "getpeername")
		})
	})
	t.Run("changes getpeername by a send", func(t *testing.T) {
		holdIn(t, loader.ModeLegacy, unix.IPPROTO_UDP, func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			s.asksService(x, b)
			same(s, b.front, x.peername(), "getpeername")
		})
	})
}

func TestSwitchingModes(t *testing.T) {
	const (
		storage = loader.ModeStorage
		dual    = loader.ModeDual
	)
	for _, way := range []struct {
		name     string
		from, to loader.Mode
	}{
		{"storage to dual", storage, dual},
		{"legacy to dual", legacy, dual},
		{"dual to storage", dual, storage},
		{"dual to legacy", dual, legacy},
	} {
		t.Run(way.name+" keeps what sockets remember", func(t *testing.T) {
			for _, protocol := range either {
				holdIn(t, way.from, protocol, func(s *scene) {
					a := s.service()
					connected, former, sender := s.socket(), s.socket(), s.socket()
					connected.connect(a.front)
					var fq, sq string
					if s.datagram() {
						former.connect(a.front)
						fq = s.queue(former, a.front)
						former.connect(s.plainServer())
						sq = s.queue(sender, a.front)
					}
					s.setMode(way.to)
					s.connected(connected, a)
					if s.datagram() {
						s.heard(former, fq, a.backend, a.front)
						s.heard(sender, sq, a.backend, a.front)
					}
					// What one of the two states has, only the mode that knows it cleans up.
					s.mayLeak = way.from == legacy || way.from == dual
				})
			}
		})
	}

	for _, way := range []struct {
		name     string
		from, to loader.Mode
	}{
		{"dual to storage", dual, storage},
		{"storage to legacy", storage, legacy},
		{"dual to legacy", dual, legacy},
	} {
		t.Run(way.name+" is refused while sockets rely on what it would not read", func(t *testing.T) {
			holdIn(t, way.from, unix.IPPROTO_UDP, func(s *scene) {
				x := s.socket()
				x.connect(s.service().front)
				err := datapath.SetMode(context.Background(), way.to, false)
				require.ErrorIs(s, err, loader.ErrUnsafeMode)
				mode, err := datapath.Mode()
				require.NoError(s, err)
				assert.Equal(s, way.from, mode)
			})
		})
	}

	t.Run("a socket that has a table and is closed in legacy mode leaves nothing", func(t *testing.T) {
		holdIn(t, dual, unix.IPPROTO_UDP, func(s *scene) {
			x := s.socket()
			for range 12 {
				s.asksService(x, s.service())
			}
			x.connect(s.service().front)
			require.Equal(s, 13, x.tuples())
			s.setMode(legacy)
			x.close()
			s.mayLeak = true // in the hash, as ever in legacy mode
		})
	})
	t.Run("what sockets have done in legacy mode counts, not what storage said before", func(t *testing.T) {
		holdIn(t, dual, unix.IPPROTO_UDP, func(s *scene) {
			a, c := s.service(), s.service()
			b, d := s.serviceTo(a.backend), s.serviceTo(c.backend)
			x, y := s.socket(), s.socket()
			x.connect(a.front)
			s.asksService(y, c)
			s.setMode(legacy)
			x.connect(b.front)
			q := s.queue(y, d.front)
			s.setMode(dual)
			s.connected(x, b)
			s.heard(y, q, c.backend, d.front)
			s.mayLeak = true // in the hash, as ever in legacy mode
		})
	})
	t.Run("dual ends what only the hash knows of a peer that is turned to directly", func(t *testing.T) {
		holdIn(t, legacy, unix.IPPROTO_UDP, func(s *scene) {
			a, b := s.service(), s.service()
			x, y := s.socket(), s.socket()
			x.connect(a.front)
			s.asksService(y, b)
			s.setMode(dual)
			x.connect(a.backend)
			s.asks(y, b.backend, b.backend, b.backend)
			same(s, a.backend, x.peername(), "getpeername")
			s.talks(x, a.backend, a.backend)
			assert.Zero(s, s.hashEntries(), "entries of peers that were turned to directly")
		})
	})
	t.Run("dual reads storage first", func(t *testing.T) {
		holdIn(t, dual, unix.IPPROTO_UDP, func(s *scene) {
			a, b := s.service(), s.service()
			x := s.socket()
			x.connect(a.front)
			s.hashSays(x, a.backend, b)
			s.connected(x, a)
		})
	})
}

// hashSays overwrites what the hash knows of a socket's peer.
func (s *scene) hashSays(x *socket, peer netip.AddrPort, svc *service) {
	s.Helper()
	s.putHash(x.cookie(), peer, svc)
}

func TestSwitchingModesUnderTraffic(t *testing.T) {
	for _, ways := range [][]loader.Mode{
		{loader.ModeStorage, loader.ModeDual},
		{loader.ModeLegacy, loader.ModeDual},
	} {
		t.Run(ways[0].String()+" and "+ways[1].String(), func(t *testing.T) {
			holdIn(t, ways[0], unix.IPPROTO_UDP, func(s *scene) {
				// The one of the two modes that does not know a state cannot clean it up.
				s.mayLeak = true
				s.answersDuring(func() {
					for range scaled(20) {
						for _, mode := range ways {
							s.setMode(mode)
						}
					}
				})
			})
		})
	}
}

// answersDuring does something while sockets connect, send, receive and close, which must not notice.
func (s *scene) answersDuring(f func()) {
	s.Helper()
	const workers = 3
	var all []*service
	for range 8 {
		all = append(all, s.service())
	}
	var stop atomic.Bool
	var rounds atomic.Int64
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := s.oneRound(all, i); err != nil {
					errs <- err
					return
				}
				rounds.Add(1)
			}
		})
	}
	f()
	stop.Store(true)
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(s, err)
	}
	s.Log(rounds.Load(), "rounds of connect, send, receive and close")
	assert.NotZero(s, rounds.Load())
}
