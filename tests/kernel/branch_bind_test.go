// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// Ports of the bind tests, where no server is.
const (
	freePort     = 9100
	freeNodePort = 30100
)

func (x *socket) tryBind(to netip.AddrPort) error {
	x.Helper()
	if x.domain == unix.AF_INET6 {
		require.NoError(x, unix.SetsockoptInt(x.fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
	}
	return unix.Bind(x.fd, x.sockaddr(to))
}

// binds checks that a socket can be bound there.
func (s *scene) binds(to netip.AddrPort) {
	s.Helper()
	s.bindsBy(s.socket, to)
}

func (s *scene) bindsBy(open func() *socket, to netip.AddrPort) {
	s.Helper()
	x := open()
	err := x.tryBind(to)
	for start := time.Now(); errors.Is(err, unix.EADDRINUSE) && time.Since(start) < patience; time.Sleep(tick) {
		err = x.tryBind(to) // whoever had it is closed a moment later if another process looks at it
	}
	require.NoError(s, err, "bind to %v", to)
	if !to.Addr().IsUnspecified() {
		same(s, to, x.sockname(), "getsockname")
	}
	x.close()
}

// protects checks that no socket can be bound there.
func (s *scene) protects(to netip.AddrPort) {
	s.Helper()
	x := s.socket()
	require.ErrorIs(s, x.tryBind(to), rejection(s.T, unix.EADDRINUSE), "bind to %v", to)
	assert.Zero(s, x.sockname().Port(), "local port after a bind that was rejected")
	x.close()
}

var protected = []lbmap.ServiceFlags{lbmap.FlagNodePort, lbmap.FlagExternalIP, lbmap.FlagLoadBalancer}

func TestBranchB2_BindLookup(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "by address and port", play: func(s *scene) {
			a := s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1))
			s.protects(a.front)
			s.binds(s.host(2, freePort))
			s.binds(s.host(1, freePort+1))
		}},
		rule{name: "by the wildcard, on addresses of this host only", play: func(s *scene) {
			s.put(s.everywhere(freeNodePort), lbmap.FlagNodePort, s.to(1))
			s.protects(s.everywhere(freeNodePort))
			s.protects(s.loopback(freeNodePort))
			s.binds(s.host(1, freeNodePort))
			s.identify(s.host(1, 0), lbmap.IdentityRemoteNode, 0)
			s.binds(s.host(1, freeNodePort))
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			s.protects(s.host(1, freeNodePort))
		}},
		rule{name: "by the wildcard, in the range only", play: func(s *scene) {
			s.put(s.everywhere(freePort), lbmap.FlagNodePort, s.to(1))
			s.binds(s.loopback(freePort))
		}},
		rule{name: "of another protocol: not protected", play: func(s *scene) {
			other := func(svc *lbmap.Service) {
				svc.Frontend.Protocol = unix.IPPROTO_TCP + unix.IPPROTO_UDP - svc.Frontend.Protocol
			}
			s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1), other)
			s.binds(s.host(1, freePort))
		}},
		rule{name: "in another namespace than the host's: not protected", play: func(s *scene) {
			a := s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1))
			s.bindsBy(s.podSocket, a.front)
			s.protects(a.front)
		}},
	)
	t.Run("by default", func(t *testing.T) {
		holdWith(t, loader.DefaultFeatures(), either, rule{name: "the host's namespace is the kernel's first one, not that of these tests", play: func(s *scene) {
			s.binds(s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1)).front)
		}})
	})
	t.Run("node ports off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "nothing is protected", play: func(s *scene) {
			s.binds(s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1), anyProtocol).front)
			s.put(s.everywhere(freeNodePort), lbmap.FlagNodePort, s.to(1), anyProtocol)
			s.binds(s.loopback(freeNodePort))
		}})
	})
}

func TestBranchB3_BindV4Mapped(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "an IPv6 socket on a v4-mapped address is looked up as IPv4", play: func(s *scene) {
		if !s.mapped {
			return
		}
		s.protects(s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1)).front)
		s.put(s.everywhere(freeNodePort), lbmap.FlagNodePort, s.to(1))
		s.protects(s.loopback(freeNodePort))
		s.protects(s.everywhere(freeNodePort))
	}})
}

func TestBranchB4_BindIsRejected(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "node port, external IP, load balancer: EADDRINUSE, with backends or without", play: func(s *scene) {
			for i, flags := range protected {
				s.protects(s.put(s.host(i, freePort), flags, s.to(1)).front)
				s.protects(s.put(s.host(i, freePort+1), flags, nil).front)
			}
		}},
		rule{name: "other services: allowed", play: func(s *scene) {
			for i, flags := range []lbmap.ServiceFlags{0, lbmap.FlagHostPort, lbmap.FlagRoutable | lbmap.FlagAffinity} {
				s.binds(s.put(s.host(i, freePort), flags, s.to(1)).front)
			}
		}},
		rule{name: "L7 and L7 delegate: allowed", play: func(s *scene) {
			for i, flags := range protected {
				s.binds(s.put(s.host(i, freePort), flags|lbmap.FlagL7LoadBalancer, s.to(1), proxied).front)
				s.binds(s.put(s.host(i, freePort+1), flags|lbmap.FlagL7Delegate, s.to(1)).front)
			}
		}},
		rule{name: "L7 without a proxy port: allowed", play: func(s *scene) {
			s.binds(s.put(s.host(1, freePort), lbmap.FlagLoadBalancer|lbmap.FlagL7LoadBalancer, s.to(1)).front)
		}},
		rule{name: "a socket that was rejected can be bound elsewhere", play: func(s *scene) {
			a := s.put(s.host(1, freePort), lbmap.FlagLoadBalancer, s.to(1))
			x := s.socket()
			require.Error(s, x.tryBind(a.front))
			err := x.tryBind(s.host(1, freePort+1))
			if errors.Is(err, unix.EINVAL) && !haveHelper(s.T, ebpf.CGroupSock, asm.FnLoop) { // of the same release
				oldkernel.Skip(s.T, 5, 17, "a socket whose bind was rejected loses the port")
			}
			require.NoError(s, err)
		}},
	)
	t.Run("without L7", func(t *testing.T) {
		f := none(t)
		f.NodePort, f.NodePortMin, f.NodePortMax = true, 30000, 32767
		holdWith(t, f, either, rule{name: "an L7 service is protected like others", play: func(s *scene) {
			s.protects(s.put(s.host(1, freePort), lbmap.FlagLoadBalancer|lbmap.FlagL7LoadBalancer, s.to(1), proxied, anyProtocol).front)
		}})
	})
}

// health is what the map of the health checker's sockets has of one, which it also removes.
func (s *scene) health(x *socket) *lbmap.BackendValue {
	s.Helper()
	full, err := options().WithDefaults()
	require.NoError(s, err)
	name := lbmap.Health6Map
	if s.unroutable.Is4() {
		name = lbmap.Health4Map
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(full.MapsDir, name), nil)
	require.NoError(s, err)
	defer m.Close()
	var v lbmap.BackendValue
	// Two calls: hashes do not have LookupAndDelete before Linux 5.14.
	if err := m.Lookup(x.cookie(), &v); err != nil {
		require.ErrorIs(s, err, ebpf.ErrKeyNotExist)
		return nil
	}
	require.NoError(s, m.Delete(x.cookie()))
	return &v
}

func TestBranchH1_HealthCheckBindGate(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "without the mark: left alone", play: func(s *scene) {
			x := s.socket()
			x.setMark(healthMark + 1)
			require.NoError(s, x.tryBind(s.host(1, freePort)))
			same(s, s.host(1, freePort), x.sockname(), "getsockname")
			assert.Nil(s, s.health(x))
		}},
		rule{name: "in another namespace than the host's: left alone", play: func(s *scene) {
			x := s.podSocket()
			x.setMark(healthMark)
			require.NoError(s, x.tryBind(s.host(1, freePort)))
			same(s, s.host(1, freePort), x.sockname(), "getsockname")
			assert.Nil(s, s.health(x))
		}},
	)
	for _, f := range pingFamilies {
		t.Run("another protocol: left alone, "+f.name, func(t *testing.T) {
			s := newScene(t, loader.ModeStorage, f, unix.IPPROTO_UDP)
			x := pingSocket(t, f)
			x.setMark(healthMark)
			require.NoError(s, x.tryBind(s.host(1, freePort)))
			same(s, s.host(1, freePort), x.sockname(), "getsockname")
			assert.Nil(s, s.health(x))
		})
	}
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "left alone", play: func(s *scene) {
			x := s.socket()
			x.setMark(healthMark)
			require.NoError(s, x.tryBind(s.host(1, freePort)))
			same(s, s.host(1, freePort), x.sockname(), "getsockname")
		}})
	})
}

func TestBranchH2_HealthCheckBind(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "the address is remembered, and the socket bound to any", play: func(s *scene) {
		x := s.socket()
		x.setMark(healthMark)
		require.NoError(s, x.tryBind(s.host(1, freePort)))
		name := x.sockname()
		assert.True(s, name.Addr().IsUnspecified(), "bound to %v", name)
		assert.NotZero(s, name.Port())
		assert.NotEqual(s, freePort, int(name.Port()))
		v := s.health(x)
		require.NotNil(s, v, "entry of the health map")
		same(s, s.host(1, freePort), v.AddrPort, "address remembered")
		assert.EqualValues(s, s.protocol, v.Protocol)
		assert.Equal(s, healthMark, x.mark(), "the mark is for the connect")
	}})
}
