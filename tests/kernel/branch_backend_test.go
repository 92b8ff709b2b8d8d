// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

func TestBranchF9_L7Delegate(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "left alone", play: func(s *scene) {
			s.leaves(s.put(s.host(1, firstPort), lbmap.FlagL7Delegate, s.to(1)).front)
		}},
		rule{name: "its bit means another thing in a host port", play: func(s *scene) {
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			a := s.put(s.host(1, firstPort), lbmap.FlagL7Delegate|lbmap.FlagHostPort, s.to(1))
			s.reaches(a.front, a.backend)
		}},
	)
}

func TestBranchF10_LeftToThePacketPath(t *testing.T) {
	const external, hostPort, nat = lbmap.FlagExternalIP, lbmap.FlagHostPort, lbmap.FlagNAT46x64
	holdWith(t, all(t), either,
		rule{name: "NAT 46x64: left alone, on an address of this host too", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), nat, s.to(1))
			s.leaves(a.front)
			s.identify(a.front, lbmap.IdentityHost, 0)
			s.leaves(a.front)
		}},
		rule{name: "external IP or host port that is not of this host: left alone", play: func(s *scene) {
			for i, flags := range []lbmap.ServiceFlags{external, hostPort} {
				a := s.put(s.host(i, firstPort), flags, s.to(1))
				s.leaves(a.front)
				for _, identity := range []uint32{lbmap.IdentityRemoteNode, worldIdentity} {
					s.identify(a.front, identity, 0)
					s.leaves(a.front)
				}
			}
		}},
		rule{name: "external IP or host port of this host: translated", play: func(s *scene) {
			for i, flags := range []lbmap.ServiceFlags{external, hostPort} {
				a := s.put(s.host(i, firstPort), flags, s.to(1))
				s.identify(a.front, lbmap.IdentityHost, 0)
				s.reaches(a.front, a.backend)
			}
		}},
		rule{name: "host port on loopback: translated", play: func(s *scene) {
			a := s.put(s.loopback(firstPort), hostPort, s.to(1))
			s.reaches(a.front, a.backend)
		}},
		rule{name: "external IP on loopback: left alone", play: func(s *scene) {
			s.leaves(s.put(s.loopback(firstPort), external, s.to(1)).front)
		}},
		rule{name: "load balancer and others: translated", play: func(s *scene) {
			for i, flags := range []lbmap.ServiceFlags{
				lbmap.FlagLoadBalancer, lbmap.FlagRoutable, lbmap.FlagSourceRange, lbmap.FlagExternalLocal,
				lbmap.FlagInternalLocal, lbmap.FlagNodePort, lbmap.FlagDSR,
			} {
				a := s.put(s.host(i, firstPort), flags, s.to(1))
				s.reaches(a.front, a.backend)
			}
		}},
	)
	t.Run("without mitigation", func(t *testing.T) {
		holdWith(t, none(t), either,
			rule{name: "external IP that is not of this host: translated", play: func(s *scene) {
				a := s.put(s.host(1, firstPort), external, s.to(1), anyProtocol)
				s.reaches(a.front, a.backend)
			}},
			rule{name: "host port and NAT 46x64: left alone all the same", play: func(s *scene) {
				s.leaves(s.put(s.host(1, firstPort), hostPort, s.to(1), anyProtocol).front)
				s.leaves(s.put(s.host(2, firstPort), nat, s.to(1), anyProtocol).front)
			}},
		)
	})
}

func TestBranchF11_LocalRedirect(t *testing.T) {
	skip := func(s *scene, x *socket, a *service) {
		s.Helper()
		cookie := cookieOfNetns(s.T, x)
		require.NoError(s, tables.AddSkipLB(cookie, a.front))
		s.Cleanup(func() { assert.NoError(s, tables.RemoveSkipLB(cookie, a.front)) })
	}
	holdWith(t, all(t), either,
		rule{name: "with a skip entry of this namespace: left alone there, translated elsewhere", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagLocalRedirect, s.to(1))
			s.reaches(a.front, a.backend)
			skip(s, s.podSocket(), a)
			s.leavesBy(s.podSocket, a.front)
			s.reaches(a.front, a.backend)
			skip(s, s.socket(), a)
			s.leaves(a.front)
		}},
		rule{name: "with a skip entry of another address or port: translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagLocalRedirect, s.to(1))
			skip(s, s.socket(), &service{front: s.host(1, firstPort+1)})
			skip(s, s.socket(), &service{front: s.host(2, firstPort)})
			s.reaches(a.front, a.backend)
		}},
		rule{name: "a skip entry of a service that is not redirected: translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			skip(s, s.socket(), a)
			s.reaches(a.front, a.backend)
		}},
	)
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "with a skip entry: translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagLocalRedirect, s.to(1), anyProtocol)
			skip(s, s.socket(), a)
			s.reaches(a.front, a.backend)
		}})
	})
}

func TestBranchF12_L7(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "in the host's namespace: to the proxy on loopback", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagL7LoadBalancer, s.to(1), proxied)
			s.reaches(a.front, s.loopback(proxyPort))
		}},
		rule{name: "elsewhere: left alone", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagL7LoadBalancer, s.to(1), proxied)
			s.leavesBy(s.podSocket, a.front)
		}},
		rule{name: "without a proxy port: an ordinary service", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagL7LoadBalancer, s.to(1))
			s.reaches(a.front, a.backend)
			s.reachesBy(s.podSocket, a.front, a.backend)
		}},
	)
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "an ordinary service", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagL7LoadBalancer, s.to(1), anyProtocol, proxied)
			s.reaches(a.front, a.backend)
			s.reachesBy(s.podSocket, a.front, a.backend)
		}})
	})
}

const stickyFor = 100 * time.Second

func sticky(svc *lbmap.Service) {
	svc.AffinityTimeout, svc.Algorithm = stickyFor, lbmap.AlgorithmMaglev
}

// ghostID is the id of a backend that is in no slot: only affinity leads there.
const ghostID, ghostNumber = 9999, 9

// ghost publishes a backend that only affinity leads to.
func (s *scene) ghost() netip.AddrPort {
	s.Helper()
	m := tables.Backends6
	if s.unroutable.Is4() {
		m = tables.Backends4
	}
	at := s.backendAt(ghostNumber)
	require.NoError(s, m.Put(uint32(ghostID), lbmap.BackendValue{AddrPort: at, Protocol: lbmap.Protocol(s.protocol)}))
	s.Cleanup(func() { _ = m.Delete(uint32(ghostID)) })
	return at
}

func (s *scene) affinities() *ebpf.Map {
	if s.unroutable.Is4() {
		return datapath.Map(lbmap.Affinity4Map)
	}
	return datapath.Map(lbmap.Affinity6Map)
}

func (s *scene) affinityKey(x *socket, a *service) lbmap.AffinityKey {
	s.Helper()
	return lbmap.AffinityKey{NetnsCookie: cookieOfNetns(s.T, x), IPv6: !s.unroutable.Is4(), RevNat: a.revNat}
}

// remember makes the namespace of a socket have used a backend of the service some time ago, which
// may be one of the service's or not.
func (s *scene) remember(x *socket, a *service, id uint32, ago time.Duration, match bool) {
	s.Helper()
	key := s.affinityKey(x, a)
	value := lbmap.AffinityValue{LastUsed: monotonicSeconds(s) - uint64(ago/time.Second), BackendID: id}
	require.NoError(s, s.affinities().Put(key, value))
	if match {
		require.NoError(s, tables.AddAffinityMatch(id, a.revNat))
		s.Cleanup(func() { _ = tables.RemoveAffinityMatch(id, a.revNat) })
	}
}

func monotonicSeconds(s *scene) uint64 {
	s.Helper()
	var ts unix.Timespec
	require.NoError(s, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Sec)
}

// remembered is which backend the namespace of a socket has used last; nil if there is none.
func (s *scene) remembered(x *socket, a *service) *lbmap.AffinityValue {
	s.Helper()
	var v lbmap.AffinityValue
	err := s.affinities().Lookup(s.affinityKey(x, a), &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	require.NoError(s, err)
	return &v
}

// usedJustNow checks that the entry of the socket's namespace says so.
func (s *scene) usedJustNow(x *socket, a *service, backend netip.AddrPort) {
	s.Helper()
	v := s.remembered(x, a)
	require.NotNil(s, v, "affinity")
	assert.InDelta(s, monotonicSeconds(s), v.LastUsed, 30, "last use")
	if v.BackendID == ghostID {
		same(s, s.backendAt(ghostNumber), backend, "backend remembered")
		return
	}
	svc, err := tables.Service(s.Context(), s.frontend(a.front))
	require.NoError(s, err)
	for _, b := range svc.Backends {
		if b.ID == v.BackendID {
			same(s, b.AddrPort, backend, "backend remembered")
			return
		}
	}
	s.Fatalf("the affinity is to backend %d, which is not one of the service's", v.BackendID)
}

// goesTo connects a new socket and returns the server that answers.
func (s *scene) goesTo(open func() *socket, to netip.AddrPort) netip.AddrPort {
	s.Helper()
	x := open()
	x.connect(to)
	same(s, to, x.peername(), "getpeername")
	q := s.question()
	x.send(q)
	reply, _ := x.receive()
	payload, at := split(reply)
	require.Equal(s, q, payload)
	x.close()
	return at
}

func TestBranchF13_Affinity(t *testing.T) {
	publish := func(s *scene) *service {
		return s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1, 2, 3), sticky)
	}
	holdWith(t, all(t), either,
		rule{name: "the sockets of a namespace keep to its backend", play: func(s *scene) {
			a := publish(s)
			first := s.goesTo(s.socket, a.front)
			for range 6 {
				same(s, first, s.goesTo(s.socket, a.front), "backend")
			}
			if s.datagram() {
				s.asks(s.socket(), a.front, first, a.front)
				s.mayLeak = s.mode == legacy
			}
		}},
		rule{name: "an entry that has not expired is followed, and its clock starts again", play: func(s *scene) {
			a, ghost := publish(s), s.ghost()
			x := s.socket()
			s.remember(x, a, ghostID, stickyFor-40*time.Second, true)
			s.reaches(a.front, ghost)
			s.usedJustNow(x, a, ghost)
		}},
		rule{name: "of the socket's own namespace", play: func(s *scene) {
			a, ghost := publish(s), s.ghost()
			s.remember(s.socket(), a, ghostID, 0, true)
			assert.NotEqual(s, ghost, s.goesTo(s.podSocket, a.front))
			same(s, ghost, s.goesTo(s.socket, a.front), "backend")
		}},
	)
}

func TestBranchF13_AffinityExpired(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "a backend is chosen anew", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			s.ghost()
			x := s.socket()
			s.remember(x, a, ghostID, stickyFor+time.Second, true)
			s.reaches(a.front, a.backend)
			s.usedJustNow(x, a, a.backend)
		}},
		rule{name: "the entry is deleted, whether there is another backend or not", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			s.ghost()
			s.loseBackends(a)
			x := s.socket()
			s.remember(x, a, ghostID, stickyFor+time.Second, true)
			s.refuses(a.front)
			assert.Nil(s, s.remembered(x, a))
		}},
	)
}

func TestBranchF13_AffinityMatch(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "a backend that is not one of the service's any more: chosen anew", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			s.ghost()
			x := s.socket()
			s.remember(x, a, ghostID, 0, false)
			s.reaches(a.front, a.backend)
			s.usedJustNow(x, a, a.backend)
		}},
		rule{name: "the entry is deleted, whether there is another backend or not", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			s.ghost()
			s.loseBackends(a)
			x := s.socket()
			s.remember(x, a, ghostID, 0, false)
			s.refuses(a.front)
			assert.Nil(s, s.remembered(x, a))
		}},
		rule{name: "a backend that is gone: chosen anew", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			x := s.socket()
			s.remember(x, a, ghostID, 0, true)
			s.reaches(a.front, a.backend)
			s.usedJustNow(x, a, a.backend)
		}},
	)
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "affinity is not looked at", notReference: alwaysAffinity, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky, anyProtocol)
			s.ghost()
			x := s.socket()
			s.remember(x, a, ghostID, 0, true)
			s.reaches(a.front, a.backend)
		}})
	})
}

// loseBackends deletes the backends that the slots of a service name.
func (s *scene) loseBackends(a *service) {
	s.Helper()
	svc, err := tables.Service(s.Context(), s.frontend(a.front))
	require.NoError(s, err)
	for _, b := range svc.Backends {
		m := tables.Backends6
		if b.AddrPort.Addr().Is4() {
			m = tables.Backends4
		}
		require.NoError(s, m.Delete(b.ID))
	}
}

// loseSlot deletes a slot of a service.
func (s *scene) loseSlot(a *service, slot uint16) {
	s.Helper()
	m := tables.Services6
	if a.front.Addr().Is4() {
		m = tables.Services4
	}
	require.NoError(s, m.Delete(lbmap.ServiceKey{AddrPort: a.front, Slot: slot, Protocol: lbmap.Protocol(s.protocol)}))
}

func TestBranchF14_Slot(t *testing.T) {
	// seen are the servers that new sockets go to.
	const attempts = 40
	seen := func(s *scene, a *service) (servers []netip.AddrPort) {
		for range attempts {
			if at := s.goesTo(s.socket, a.front); !slices.Contains(servers, at) {
				servers = append(servers, at)
			}
		}
		slices.SortFunc(servers, netip.AddrPort.Compare)
		return servers
	}
	holdWith(t, all(t), tcp,
		rule{name: "a stream: by random", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1, 2))
			assert.Equal(s, []netip.AddrPort{s.backendAt(1), s.backendAt(2)}, seen(s, a))
		}},
		rule{name: "a stream: never one that is quarantined", play: func(s *scene) {
			backends := s.to(1, 2, 3)
			backends[1].Quarantined = true
			a := s.put(s.host(1, firstPort), 0, backends)
			assert.Equal(s, []netip.AddrPort{s.backendAt(1), s.backendAt(3)}, seen(s, a))
		}},
		rule{name: "a stream: no such slot is EHOSTUNREACH", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1, 2))
			s.loseSlot(a, 2)
			outcomes := make(map[bool]int)
			for range attempts {
				x := s.socket()
				err := x.tryConnect(a.front)
				if err != nil {
					s.rejectedNoBackend(err)
				}
				outcomes[err == nil]++
				x.close()
			}
			assert.Len(s, outcomes, 2, "rejected or not")
		}},
	)
	holdWith(t, all(t), udp,
		rule{name: "a datagram socket: by its cookie", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1, 2, 3))
			for range 12 {
				x := s.socket()
				server := s.backendAt(1 + int(uint32(x.cookie())%3))
				x.connect(a.front)
				s.talks(x, server, a.front)
				s.asks(x, a.front, server, a.front)
			}
		}},
		rule{name: "a datagram socket: never one that is quarantined", play: func(s *scene) {
			backends := s.to(1, 2, 3)
			backends[1].Quarantined = true
			a := s.put(s.host(1, firstPort), 0, backends)
			for range 12 {
				x := s.socket()
				x.connect(a.front)
				s.talks(x, s.backendAt([]int{1, 3}[x.cookie()%2]), a.front)
			}
		}},
		rule{name: "a datagram socket: no such slot is EHOSTUNREACH", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1, 2))
			s.loseSlot(a, 2)
			rejected := 0
			for range 8 {
				x := s.socket()
				err := x.tryConnect(a.front)
				if x.cookie()%2 == 0 {
					require.NoError(s, err)
					continue
				}
				s.rejectedNoBackend(err)
				s.rejectedNoBackend(x.trySendTo(a.front, "lost"))
				rejected++
			}
			assert.NotZero(s, rejected)
		}},
	)
}

func TestBranchF15_MissingBackend(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "EHOSTUNREACH", play: func(s *scene) {
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		s.reaches(a.front, a.backend)
		s.loseBackends(a)
		s.refuses(a.front)
	}})
}

func TestBranchF16_AffinityIsStored(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "with the backend that was chosen", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1, 2, 3), sticky)
			x := s.socket()
			require.Nil(s, s.remembered(x, a))
			s.usedJustNow(x, a, s.goesTo(s.socket, a.front))
		}},
		rule{name: "not of a service without the flag", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			s.reaches(a.front, a.backend)
			assert.Nil(s, s.remembered(x, a))
		}},
		rule{name: "not if there is no backend", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky)
			s.loseBackends(a)
			x := s.socket()
			s.refuses(a.front)
			assert.Nil(s, s.remembered(x, a))
		}},
	)
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "not stored", notReference: alwaysAffinity, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagAffinity, s.to(1), sticky, anyProtocol)
			x := s.socket()
			s.reaches(a.front, a.backend)
			assert.Nil(s, s.remembered(x, a))
		}})
	})
}

func TestBranchF18_ReverseTuple(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "has the original address and port", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.connect(a.front)
			s.remembers(x, a)
		}},
		rule{name: "has them where the wildcard has found the service", play: func(s *scene) {
			a := s.put(s.everywhere(nodePort), lbmap.FlagNodePort, s.to(1))
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			a.front = s.host(1, nodePort)
			x := s.socket()
			x.connect(a.front)
			s.remembers(x, a)
		}},
		rule{name: "is one even if the backend has the original address and port", play: func(s *scene) {
			own := s.host(1, firstPort)
			a := s.put(own, 0, []lbmap.Backend{{AddrPort: own, Protocol: lbmap.Protocol(s.protocol)}})
			x := s.socket()
			x.connect(a.front)
			s.remembers(x, a)
			s.reaches(own, own)
		}},
		rule{name: "that cannot be kept rejects the call with ENOMEM", notLegacy: storesNothing, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			noSocketMemory(s.T)
			s.rejectedNoMemory(x.tryConnect(a.front), 1)
			assert.Zero(s, x.tuples())
			assert.Zero(s, s.hashEntries())
		}},
	)
}

// remembers checks what a socket that is connected to a service has in the maps of the mode.
func (s *scene) remembers(x *socket, a *service) {
	s.Helper()
	tuple := x.conn()
	if s.mode == legacy {
		require.Nil(s, tuple)
	} else {
		require.NotNil(s, tuple)
		same(s, a.front, tuple.Service, "service of the tuple")
		same(s, a.backend, tuple.Peer, "peer of the tuple")
		assert.Equal(s, a.revNat, tuple.RevNATIndex)
	}
	v := s.hashed4or6(x, a.backend)
	if s.mode == loader.ModeStorage {
		require.Nil(s, v)
	} else {
		require.NotNil(s, v, "entry of the hash")
		same(s, a.front, v.Service, "service of the hash's entry")
		assert.Equal(s, a.revNat, v.RevNat)
	}
}

// hashed4or6 is what the hash of the address's family knows of a socket and a peer.
func (s *scene) hashed4or6(x *socket, peer netip.AddrPort) *lbmap.ReverseSKValue {
	s.Helper()
	name := lbmap.ReverseSK6Map
	if peer.Addr().Is4() {
		name = lbmap.ReverseSK4Map
	}
	var v lbmap.ReverseSKValue
	err := datapath.Map(name).Lookup(lbmap.ReverseSKKey{Cookie: x.cookie(), Backend: peer}, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	require.NoError(s, err)
	return &v
}

func TestBranchF19_Rewrite(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "address and port are those of the backend", play: func(s *scene) {
		for n := range serverPorts + 1 {
			a := s.put(s.host(n, firstPort+1), 0, s.to(n))
			s.reaches(a.front, a.backend)
		}
	}})
}
