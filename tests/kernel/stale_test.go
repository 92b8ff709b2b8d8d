// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

// Ways in which a service stops standing for its backend, for the control plane or for good.
var ways = []struct {
	name string
	end  func(s *scene, a *service)
}{
	{"is deleted", func(s *scene, a *service) { s.delete(a) }},
	{"is made again with another reverse-NAT index", func(s *scene, a *service) {
		s.delete(a)
		a.revNat += 1000
		s.publish(a)
	}},
	{"has lost its backends", func(s *scene, a *service) { s.withoutBackend(a) }},
	{"has quarantined backends only", func(s *scene, a *service) {
		s.publishWith(a, lbmap.Backend{AddrPort: a.backend, Protocol: lbmap.Protocol(a.protocol), Quarantined: true})
	}},
	{"has backends in maintenance only", func(s *scene, a *service) {
		s.publishWith(a, lbmap.Backend{AddrPort: a.backend, Protocol: lbmap.Protocol(a.protocol), State: lbmap.BackendMaintenance})
	}},
	{"leads to another backend", func(s *scene, a *service) {
		again := *a
		again.backend = s.backendAt(50)
		s.publish(&again)
	}},
	{"flaps", func(s *scene, a *service) {
		s.withoutBackend(a)
		s.publish(a)
		s.withoutBackend(a)
	}},
}

func (s *scene) withoutBackend(a *service) {
	s.Helper()
	s.publishWith(a)
}

func (s *scene) publishWith(a *service, backends ...lbmap.Backend) {
	s.Helper()
	_, err := services.Upsert(s.Context(), lbmap.Service{Frontend: a.frontend(), RevNat: a.revNat, Backends: backends})
	require.NoError(s, err)
}

const judges = "it judges what it knows at every read"

// answerTime is how long an answer to what was sent can be expected.
const answerTime = 5 * time.Minute

// ages makes what the socket remembers older.
func (x *socket) ages(by time.Duration) {
	x.Helper()
	older := func(t *revnat.Tuple) {
		if t.Peer.Port() != 0 {
			// On a machine that has just been booted, from when it was.
			t.Time = max(t.Time-by/revnat.TimeUnit*revnat.TimeUnit, revnat.TimeUnit)
		}
	}
	var conn revnat.ConnValue
	if x.stored("revsk_conn", &conn) {
		older(&conn.Tuple)
		x.store("revsk_conn", conn)
	}
	var former revnat.FormerValue
	if x.stored("revsk_former", &former) {
		older(&former.Tuple)
		x.store("revsk_former", former)
	}
	var peers revnat.PeersValue
	if x.stored("revsk_peers", &peers) {
		for i := range peers.Slots {
			older(&peers.Slots[i])
		}
		x.store("revsk_peers", peers)
	}
}

func (x *socket) store(name string, value encoding.BinaryMarshaler) {
	x.Helper()
	require.NoError(x, datapath.Map(name).Update(uint32(x.fd), value, ebpf.UpdateExist), name)
}

// agesBeyondAnswers makes what the socket has sent too old for an answer to be expected.
func (s *scene) agesBeyondAnswers(x *socket) {
	s.Helper()
	if uptime(s.T) < answerTime+time.Minute {
		s.waitForUptime(answerTime + time.Minute)
	}
	x.ages(answerTime + 5*time.Second)
}

// waitForUptime waits where the machine was booted for the test.
func (s *scene) waitForUptime(d time.Duration) {
	s.Helper()
	time.Sleep(d - uptime(s.T))
}

// What a socket remembers is true of that socket, whatever becomes of the service: c-ares drops answers from
// another source than it has asked, wireguard follows it, and a socket that has lost its service is not found
// when its backend goes.
func TestWhatASocketRemembersStaysTrueWhenItsService(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			hold(t, either,
				rule{name: "getpeername shows what it is connected to", notLegacy: judges, play: func(s *scene) {
					a := s.service()
					x := s.socket()
					x.connect(a.front)
					way.end(s, a)
					for range 2 {
						same(s, a.front, x.peername(), "getpeername")
						s.talks(x, a.backend, a.front)
					}
					assert.Equal(s, 1, x.tuples())
					s.publish(a)
					s.connected(x, a)
				}},
				rule{name: "terminate ends it once its backend is gone", notLegacy: judges, play: func(s *scene) {
					s.service() // the load balancer has other backends
					a := s.service()
					x := s.socket()
					x.connect(a.front)
					way.end(s, a)
					same(s, a.front, x.peername(), "getpeername")
					s.deleteIfThere(a)
					assert.Equal(s, 1, s.terminateGone(a.backend))
					assert.Equal(s, unix.ECONNABORTED, x.pending(), "error that the application finds")
				}},
			)
			hold(t, udp,
				rule{name: "recvmsg shows what it has sent to, while an answer can be expected", notLegacy: judges, play: func(s *scene) {
					a := s.service()
					x := s.socket()
					q := s.queue(x, a.front)
					way.end(s, a)
					s.heard(x, q, a.backend, a.front)
					assert.Equal(s, 1, x.tuples())
				}},
				rule{name: "recvmsg shows what it is connected to", notLegacy: judges, play: func(s *scene) {
					a := s.service()
					x := s.socket()
					x.connect(a.front)
					q := s.queue(x, netip.AddrPort{})
					way.end(s, a)
					s.heard(x, q, a.backend, a.front)
					assert.Equal(s, 1, x.tuples())
				}},
				rule{name: "getpeername shows the connection that the kernel has kept", notLegacy: judges, play: func(s *scene) {
					a, far := s.service(), s.serviceTo(s.unreachable())
					x := s.socket()
					x.connect(a.front)
					assert.Error(s, x.tryConnect(far.front))
					way.end(s, a)
					for range 2 {
						same(s, a.front, x.peername(), "getpeername")
					}
					assert.Equal(s, 2, x.tuples())
				}},
			)
		})
	}
}

// terminateGone ends the connections to backends that are gone, of which there is to be this one.
func (s *scene) terminateGone(backend netip.AddrPort) (destroyed int) {
	s.Helper()
	reader, err := inspect.Open(datapath.InspectMaps(), inspect.Options{})
	require.NoError(s, err)
	defer reader.Close()
	connected, err := reader.ConnectedBackends(s.Context())
	require.NoError(s, err)
	gone, err := inspect.GoneBackends(s.Context(), connected, tables)
	require.NoError(s, err)
	require.Equal(s, []inspect.Backend{{AddrPort: backend, Protocol: lbmap.Protocol(s.protocol)}}, gone)
	return s.terminate(backend)
}

// The scenes in which memory could be wrong.
func TestWhatASocketHasSentTo(t *testing.T) {
	gone := func(s *scene, a *service) { s.delete(a) }
	hold(t, udp,
		rule{name: "answers as its service within five minutes of the last send, whoever has the backend's address by then", notLegacy: judges, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			gone(s, a)
			x.ages(answerTime - time.Minute)
			s.heard(x, q, a.backend, a.front)
		}},
		rule{name: "answers as itself after that, and is its service's again when that is back", notLegacy: judges, play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			r := s.queue(x, a.front)
			gone(s, a)
			s.agesBeyondAnswers(x)
			s.heard(x, q, a.backend, a.backend)
			assert.Equal(s, 1, x.tuples(), "it stays")
			s.publish(a)
			s.heard(x, r, a.backend, a.front)
		}},
		rule{name: "answers as its service for ever while that stands", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			q := s.queue(x, a.front)
			s.agesBeyondAnswers(x)
			s.heard(x, q, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}},
		rule{name: "by another service that is gone hides the connection for five minutes at most", notLegacy: oneEntry, play: func(s *scene) {
			a := s.service()
			b := s.serviceTo(a.backend)
			x := s.socket()
			x.connect(a.front)
			q := s.queue(x, b.front)
			gone(s, b)
			s.heard(x, q, a.backend, b.front)
			same(s, a.front, x.peername(), "getpeername")
			s.agesBeyondAnswers(x)
			s.connected(x, a)
		}},
		rule{name: "a UDP server that is a client too: its client is the service for five minutes, if that is gone", notLegacy: judges, play: func(s *scene) {
			a := s.service()
			x := s.socket() // serves, and asks a service whose backend asks it
			q := s.queue(x, a.front)
			r := s.queue(x, a.front)
			gone(s, a)
			s.heard(x, q, a.backend, a.front)
			s.agesBeyondAnswers(x)
			s.heard(x, r, a.backend, a.backend)
			s.asks(x, a.backend, a.backend, a.backend)
			assert.Zero(s, x.tuples(), "an answer to the client itself")
		}},
	)
}

// What lived through a time without hooks is judged until the application confirms it.
func TestAfterATimeWithoutHooks(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) {
			type state struct {
				*scene
				a                                *service
				kept, turned, confirmed, renewed *socket
				sender                           *socket
				q                                string
			}
			var all []state
			for s := range everyKind(t, mode) {
				st := state{scene: s, a: s.service(), kept: s.socket(), confirmed: s.socket(), turned: s.socket(), renewed: s.socket()}
				for _, x := range []*socket{st.kept, st.turned, st.confirmed} {
					x.connect(st.a.front)
				}
				if s.datagram() {
					st.sender = s.socket()
					st.q = s.queue(st.sender, st.a.front)
				}
				all = append(all, st)
			}
			require.NoError(t, loader.Unload(t.Context(), options(), false))
			for _, st := range all {
				// Nobody sees that it turns to the backend itself.
				if st.datagram() {
					st.turned.connect(st.a.backend)
				}
			}
			reload(t, options())
			for _, st := range all {
				st.connected(st.kept, st.a)
				if st.datagram() {
					st.confirmed.connect(st.a.front)
				}
				st.renewed.connect(st.a.front)
				st.delete(st.a)
				for _, x := range []*socket{st.kept, st.turned} {
					same(st, st.a.backend, x.peername(), "getpeername")
					assert.Equal(st, 1, x.tuples(), "nothing is dropped")
				}
				if st.datagram() {
					st.heard(st.sender, st.q, st.a.backend, st.a.backend)
					same(st, st.a.front, st.confirmed.peername(), "getpeername of what was confirmed")
				}
				same(st, st.a.front, st.renewed.peername(), "getpeername of what is new")
				st.renewed.close() // the books of the other scenes do not have it
				st.publish(st.a)
				st.connected(st.kept, st.a)
			}
		})
	}
}
