// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockdiag"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

func withoutIPv4(t *testing.T) loader.Features {
	f := none(t)
	f.IPv4 = false
	return f
}

func withoutIPv6(t *testing.T) loader.Features {
	f := none(t)
	f.IPv6 = false
	return f
}

func TestBranchV1_Families(t *testing.T) {
	play := func(v4, v6 bool) func(s *scene) {
		return func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			if on := s.unroutable.Is4() && v4 || !s.unroutable.Is4() && v6; on {
				s.reaches(a.front, a.backend)
				s.mayLeak = s.mayLeak || s.leavesBehind(v6)
			} else {
				s.leaves(a.front)
			}
		}
	}
	t.Run("both", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "all are translated", play: play(true, true)})
	})
	t.Run("IPv4 off", func(t *testing.T) {
		holdWith(t, withoutIPv4(t), either, rule{name: "IPv4 is left alone, v4-mapped or not", play: play(false, true)})
	})
	t.Run("IPv6 off", func(t *testing.T) {
		holdWith(t, withoutIPv6(t), either, rule{name: "IPv6 is left alone, v4-mapped is not", play: play(true, false)})
	})
	holdWith(t, none(t), either, rule{name: "an IPv6 address is not taken for the IPv4 one in its end", play: func(s *scene) {
		if s.unroutable.Is4() {
			return
		}
		v4 := *s
		v4.family = ipv4
		// ::ffff:0:0/96 is the only prefix that is v4-mapped.
		x := s.socket()
		v4.put(v4.host(1, firstPort), 0, v4.to(1), anyProtocol)
		a16 := v4.host(1, firstPort).Addr().As16()
		a16[10], a16[11] = 0xff, 0xfe
		err := unix.Connect(x.fd, &unix.SockaddrInet6{Addr: a16, Port: firstPort})
		assert.ErrorIs(s, err, unix.ENETUNREACH)
	}})
}

func TestBranchV2_KeptAsIPv4(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "under the cookie of the real socket", play: func(s *scene) {
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		x := s.socket()
		x.connect(a.front)
		s.remembers(x, a)
		entries4, entries6 := entries(s.T, lbmap.ReverseSK4Map), entries(s.T, lbmap.ReverseSK6Map)
		switch {
		case s.mode == loader.ModeStorage:
			assert.Zero(s, entries4+entries6)
		case s.unroutable.Is4():
			assert.Equal(s, []int{1, 0}, []int{entries4, entries6})
		default:
			assert.Equal(s, []int{0, 1}, []int{entries4, entries6})
		}
	}})
}

func TestBranchV3_RewriteAsV4Mapped(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "the kernel's peer is the v4-mapped address of the backend", play: func(s *scene) {
		if !s.mapped {
			return
		}
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		x := s.socket()
		x.connect(a.front)
		s.talks(x, a.backend, a.front)
		// Of an IPv6 socket sockdiag has IPv4 for v4-mapped addresses alone.
		found, err := sockdiag.List(unix.AF_INET6, s.protocol, a.backend.Port())
		require.NoError(s, err)
		i := slices.IndexFunc(found, func(k sockdiag.Socket) bool { return k.Cookie == x.cookie() })
		require.GreaterOrEqual(s, i, 0, "the kernel knows no such socket that is connected to port %d", a.backend.Port())
		same(s, a.backend, found[i].Remote, "the kernel's peer")
	}})
}

func TestBranchR2_CookieAddressAndPort(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "of another socket: getpeername is left alone", play: func(s *scene) {
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		x, y := s.socket(), s.socket()
		x.connect(a.front)
		y.connect(a.backend)
		same(s, a.backend, y.peername(), "getpeername")
		s.talks(y, a.backend, a.backend)
		s.connected(x, a)
	}})
	holdWith(t, all(t), udp,
		rule{name: "of another socket: recvmsg is left alone", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x, y := s.socket(), s.socket()
			x.connect(a.front)
			s.asks(y, a.backend, a.backend, a.backend)
			s.connected(x, a)
		}},
		rule{name: "of another address or port: recvmsg is left alone", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			s.asksService(x, a)
			for _, n := range []int{2, 1 + serverPorts} {
				s.asks(x, s.backendAt(n), s.backendAt(n), s.backendAt(n))
			}
			s.mayLeak = s.mode == legacy
		}},
	)
}

func TestBranchR3_V4Mapped(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "what is kept as IPv4 is found for a v4-mapped peer", play: func(s *scene) {
		if !s.mapped {
			return
		}
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		s.reaches(a.front, a.backend)
	}})
}

func TestBranchR4_ServiceIsLookedUpAgain(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "by the wildcard too", play: func(s *scene) {
			s.put(s.everywhere(nodePort), lbmap.FlagNodePort, s.to(1))
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			s.reaches(s.host(1, nodePort), s.backendAt(1))
			s.reaches(s.loopback(nodePort), s.backendAt(1))
		}},
		rule{name: "by the wildcard, which no longer finds it when the address is no node's any more", play: func(s *scene) {
			a := s.put(s.everywhere(nodePort), lbmap.FlagNodePort, s.to(1))
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			x := s.socket()
			x.connect(s.host(1, nodePort))
			same(s, s.host(1, nodePort), x.peername(), "getpeername")
			s.identify(s.host(1, 0), worldIdentity, 0)
			s.forgets(x, a, s.host(1, nodePort))
		}},
		rule{name: "in the internal scope of two", play: func(s *scene) {
			s.put(s.host(1, firstPort), lbmap.FlagTwoScopes, s.to(2))
			a := s.put(s.host(1, firstPort), lbmap.FlagTwoScopes, s.to(1), internal)
			s.reaches(a.front, a.backend)
		}},
	)
}

// forgets checks that mode legacy shows the backend of a connection whose service stands no longer, and deletes
// what it has of it. What the socket itself remembers stays true.
func (s *scene) forgets(x *socket, a *service, front netip.AddrPort) {
	s.Helper()
	if s.mode != legacy {
		same(s, front, x.peername(), "getpeername")
		s.talks(x, a.backend, front)
		assert.Equal(s, 1, x.tuples())
		return
	}
	same(s, a.backend, x.peername(), "getpeername")
	assert.Zero(s, x.tuples())
	assert.Zero(s, s.hashEntries())
	s.talks(x, a.backend, a.backend)
}

func TestBranchR5_Stale(t *testing.T) {
	for _, way := range []struct {
		name string
		end  func(s *scene, a *service)
	}{
		{"no service", func(s *scene, a *service) { s.delete(a) }},
		{"another reverse-NAT index", func(s *scene, a *service) {
			s.put(a.front, 0, s.to(1))
		}},
		{"no backends", func(s *scene, a *service) { s.put(a.front, 0, nil, indexOf(a)) }},
		{"quarantined backends only", func(s *scene, a *service) {
			backends := s.to(1)
			backends[0].Quarantined = true
			s.put(a.front, 0, backends, indexOf(a))
		}},
		{"L7 without a proxy port, and no backends", func(s *scene, a *service) {
			s.put(a.front, lbmap.FlagL7LoadBalancer, nil, indexOf(a))
		}},
	} {
		holdWith(t, all(t), either, rule{name: way.name + ": getpeername is left alone, and the entry deleted, in mode legacy", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.connect(a.front)
			same(s, a.front, x.peername(), "getpeername")
			way.end(s, a)
			s.forgets(x, a, a.front)
		}})
		holdWith(t, all(t), udp, rule{name: way.name + ": recvmsg is left alone, and the entry deleted, in mode legacy", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			q := s.queue(x, a.front)
			if s.mode != legacy {
				r := s.queue(x, a.front)
				way.end(s, a)
				s.heard(x, q, a.backend, a.front)
				s.agesBeyondAnswers(x)
				s.heard(x, r, a.backend, a.backend)
				assert.Equal(s, 1, x.tuples())
				return
			}
			way.end(s, a)
			s.heard(x, q, a.backend, a.backend)
			assert.Zero(s, x.tuples())
			assert.Zero(s, s.hashEntries())
		}})
	}
	t.Run("L7 off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "no backends, whatever the proxy port: the entry is deleted, in mode legacy", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			x := s.socket()
			x.connect(a.front)
			s.put(a.front, lbmap.FlagL7LoadBalancer, nil, anyProtocol, proxied, indexOf(a))
			s.forgets(x, a, a.front)
		}})
	})
}

// indexOf gives a service the reverse-NAT index of the other.
func indexOf(a *service) func(*lbmap.Service) {
	return func(svc *lbmap.Service) { svc.RevNat = a.revNat }
}

func TestBranchR6_Rewrite(t *testing.T) {
	// What may happen to a service while it stays the same one.
	for _, way := range []struct {
		name   string
		change func(s *scene, a *service)
	}{
		{"the same", func(*scene, *service) {}},
		{"with other backends", func(s *scene, a *service) { s.put(a.front, 0, s.to(2, 3), indexOf(a)) }},
		{"with other flags", func(s *scene, a *service) {
			s.put(a.front, lbmap.FlagExternalIP|lbmap.FlagNAT46x64, s.to(1), indexOf(a))
		}},
		{"without backends, but with an L7 proxy", func(s *scene, a *service) {
			s.put(a.front, lbmap.FlagL7LoadBalancer, nil, indexOf(a), proxied)
		}},
	} {
		holdWith(t, all(t), either, rule{name: way.name + ": getpeername shows the service", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.connect(a.front)
			way.change(s, a)
			same(s, a.front, x.peername(), "getpeername")
		}})
		holdWith(t, all(t), udp, rule{name: way.name + ": recvmsg shows the service", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			q := s.queue(x, a.front)
			way.change(s, a)
			s.heard(x, q, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}})
	}
}

func TestBranchX1_ReleaseIPv4(t *testing.T)     { releases(t, all(t), ipv4) }
func TestBranchX2_ReleaseIPv6(t *testing.T)     { releases(t, all(t), ipv6) }
func TestBranchX3_ReleaseV4Mapped(t *testing.T) { releases(t, all(t), v4mapped) }

// An IPv4-only configuration cleans v4-mapped sockets as well (see docs/differences.md).
func TestBranchX4_ReleaseV4MappedWithoutIPv6(t *testing.T) { releases(t, withoutIPv6(t), v4mapped) }

// releases checks that a connected socket's entries are gone when it is closed.
func releases(t *testing.T, f loader.Features, of family) {
	holdWith(t, f, either, rule{name: "deletes what is kept of the destination", play: func(s *scene) {
		if s.name != of.name {
			return
		}
		a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
		x, other := s.socket(), s.socket()
		x.connect(a.front)
		other.connect(a.front)
		s.remembers(x, a)
		x.close()
		s.remembers(other, a)
		other.close()
		if s.leavesBehind(f.IPv6) {
			becomes(s, 2, s.hashEntries, "entries")
			s.mayLeak = true
			return
		}
		s.balance()
	}})
}
