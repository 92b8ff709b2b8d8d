// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// terminations are what sockets do about a service whose backend then is gone, and whether they are destroyed.
var terminations = []struct {
	name      string
	protocols []int
	destroyed bool
	turn      func(s *scene, x *socket, a *service)
}{
	{"connected: destroyed", either, true, func(_ *scene, x *socket, a *service) {
		x.connect(a.front)
	}},
	{"connected, having sent to more than there are slots: destroyed", udp, true, func(s *scene, x *socket, a *service) {
		for range 5 {
			s.asksService(x, s.service())
		}
		x.connect(a.front)
	}},
	{"back from another connection: destroyed", udp, true, func(s *scene, x *socket, a *service) {
		x.connect(a.front)
		x.connect(s.service().front)
		x.connect(a.front)
	}},
	{"a reconnect failed in the kernel: destroyed", udp, true, func(s *scene, x *socket, a *service) {
		far := s.serviceTo(s.unreachable())
		x.connect(a.front)
		require.ErrorIs(s, x.tryConnect(far.front), unix.ENETUNREACH)
	}},
	{"only sent to: left alone", udp, false, func(s *scene, x *socket, a *service) {
		s.asksService(x, a)
	}},
	{"sent to from a socket that is connected elsewhere: left alone", udp, false, func(s *scene, x *socket, a *service) {
		x.connect(s.service().front)
		x.sendTo(a.front, "no answer is let through")
	}},
	{"connected to another service since: left alone", udp, false, func(s *scene, x *socket, a *service) {
		x.connect(a.front)
		x.connect(s.service().front)
	}},
	{"connected to no service since: left alone", udp, false, func(s *scene, x *socket, a *service) {
		x.connect(a.front)
		x.connect(s.plainServer())
	}},
	{"connected to the backend's own address since: left alone", udp, false, func(_ *scene, x *socket, a *service) {
		x.connect(a.front)
		x.connect(a.backend)
	}},
	{"disconnected: left alone", either, false, func(_ *scene, x *socket, a *service) {
		x.connect(a.front)
		x.disconnect()
	}},
	{"disconnected, then connected to another service: left alone", either, false, func(s *scene, x *socket, a *service) {
		x.connect(a.front)
		x.disconnect()
		x.connect(s.service().front)
	}},
}

// The reference destroys whatever has an entry in its hash for the backend. So does every one of these
// sockets in legacy mode, where Terminate refuses to go by it.
func TestBranchDifferenceTermination(t *testing.T) {
	for _, way := range terminations {
		hold(t, way.protocols, rule{name: way.name, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			way.turn(s, x, a)
			port := x.sockname().Port()
			_ = x.pending() // a stream's own disconnect leaves one

			destroyed := s.terminate(a.backend)
			if s.mode == legacy {
				assert.Positive(s, s.hashEntries(), "what the reference takes for a connection")
				s.mayLeak = true
				return
			}
			want := unix.Errno(0)
			if way.destroyed {
				want = unix.ECONNABORTED
			}
			assert.Equal(s, want, x.pending(), "error that the application finds")
			assert.Equal(s, way.destroyed, destroyed == 1, "%d sockets were destroyed", destroyed)
			if !way.destroyed {
				assert.Equal(s, port, x.sockname().Port(), "local port")
			}
		}})
	}
}

// In mode mirror the reference's own way, by its hash, ends every socket that is connected to the backend through a service, and none
// that it would spare where its own programs have written the hash.
func TestTheReferenceEndsInModeMirrorWhatItShould(t *testing.T) {
	needDestroy(t)
	all, connected := 0, 0
	for _, way := range terminations {
		t.Run(way.name, func(t *testing.T) {
			for _, protocol := range way.protocols {
				for _, f := range families {
					if f.domain == unix.AF_INET6 && !haveIPv6 {
						continue
					}
					inHash := make(map[loader.Mode]bool)
					for _, mode := range []loader.Mode{legacy, loader.ModeMirror} {
						t.Run(fmt.Sprintf("%v-%s-%v", lbmap.Protocol(protocol), f.name, mode), func(t *testing.T) {
							s := newScene(t, mode, f, protocol)
							s.mayLeak = mode == legacy
							a, x := s.service(), s.socket()
							way.turn(s, x, a)
							entry, err := legacyMap(a.backend).LookupBytes(lbmap.ReverseSKKey{Cookie: x.cookie(), Backend: a.backend})
							require.NoError(t, err)
							inHash[mode] = entry != nil
							if way.destroyed && inHash[mode] {
								_ = x.pending()
								x.abort(x.sockname(), a.backend)
								require.Equal(t, unix.ECONNABORTED, x.pending())
							}
						})
					}
					if all++; way.destroyed {
						connected++
						assert.True(t, inHash[loader.ModeMirror], "it is connected")
					}
					assert.True(t, inHash[legacy] || !inHash[loader.ModeMirror], "the reference would spare it")
				}
			}
		})
	}
	t.Logf("%d sockets, %d of them connected to the backend", all, connected)
}

// pending is the error that the application finds next.
func (x *socket) pending() unix.Errno {
	x.Helper()
	code, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	require.NoError(x, err)
	return unix.Errno(code)
}

// terminate ends the connections to a backend, which in legacy mode is refused.
func (s *scene) terminate(backend netip.AddrPort) (destroyed int) {
	s.Helper()
	needDestroy(s.T)
	report, err := inspect.Terminate(s.Context(), datapath.InspectMaps(), inspect.TerminateOptions{Backends: []inspect.Backend{{AddrPort: backend, Protocol: lbmap.Protocol(s.protocol)}}})
	if s.mode == legacy {
		require.ErrorIs(s, err, inspect.ErrNoProof)
		return 0
	}
	require.NoError(s, err)
	destroyed = report.Count(inspect.OutcomeDestroyed)
	require.Len(s, report.Sockets, destroyed)
	return destroyed
}

// What is destroyed can be used again, and what it held is gone when it is closed (the scene's end).
func TestTerminatedSocketsStartAgain(t *testing.T) {
	hold(t, udp, rule{
		name: "a destroyed socket connects to what the service has now", notLegacy: "refused",
		play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			s.connected(x, a)
			old := a.backend
			a.backend = s.backendAt(s.numbers + 1)
			s.publish(a)
			require.Equal(s, 1, s.terminate(old))
			require.Equal(s, unix.ECONNABORTED, x.pending())
			x.connect(a.front)
			s.connected(x, a)
			require.Zero(s, s.terminate(old))
			s.connected(x, a)
		},
	})
}
