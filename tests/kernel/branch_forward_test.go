// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

const healthMark = 0x0d00

func (x *socket) setMark(mark int) {
	x.Helper()
	require.NoError(x, unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
}

func (x *socket) mark() int {
	x.Helper()
	mark, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_MARK)
	require.NoError(x, err)
	return mark
}

func TestBranchC1_HealthCheckMark(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "with the mark: the mark is reset, and the connect left alone", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.setMark(healthMark)
			x.connect(a.front)
			assert.Zero(s, x.mark())
			same(s, a.front, x.peername(), "getpeername")
			assert.Zero(s, x.tuples())
			s.talksDirectly(x, a.front)
		}},
		rule{name: "with the mark: a service without backends is left alone too", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, nil)
			x := s.socket()
			x.setMark(healthMark)
			x.connect(a.front)
			s.talksDirectly(x, a.front)
		}},
		rule{name: "with another mark: translated, and the mark kept", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.setMark(healthMark + 1)
			x.connect(a.front)
			assert.Equal(s, healthMark+1, x.mark())
			s.connected(x, a)
		}},
		rule{name: "with the mark once: the next connect is translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.setMark(healthMark)
			x.connect(a.front)
			x.disconnect()
			x.connect(a.front)
			s.connected(x, a)
		}},
		rule{name: "with the mark: ends what the socket remembers of that very address, as every connect that is left alone", notLegacy: "it remembers until the release", play: func(s *scene) {
			a := s.service()
			x := s.socket()
			x.connect(a.front)
			if !s.datagram() {
				x.disconnect()
			}
			x.setMark(healthMark)
			x.connect(a.backend)
			same(s, a.backend, x.peername(), "getpeername")
			assert.Zero(s, x.tuples())
		}},
	)
	t.Run("comes before the choice of protocols", func(t *testing.T) {
		for _, f := range pingFamilies {
			t.Run(f.name, func(t *testing.T) {
				requirePingHooks(t)
				x := pingSocket(t, f)
				x.setMark(healthMark)
				x.connect(netip.AddrPortFrom(sandbox.Numbered(f.plain, 1), firstPort))
				assert.Zero(t, x.mark())
			})
		}
	})
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "with the mark: translated, and the mark kept", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			x := s.socket()
			x.setMark(healthMark)
			x.connect(a.front)
			assert.Equal(s, healthMark, x.mark())
			s.connected(x, a)
		}})
	})
}

// talksDirectly checks that a connected socket is answered by its very peer, a service's address. The
// kernel treats what a connected IPv6 UDP socket sends to a v4-mapped peer as a send to that address, so
// it runs the hook of sends, to which the mark means nothing.
func (s *scene) talksDirectly(x *socket, peer netip.AddrPort) {
	s.Helper()
	if !s.mapped || !s.datagram() {
		s.talks(x, peer, peer)
	}
}

// requirePingHooks skips the test where ping sockets connect without the hooks being run.
func requirePingHooks(t *testing.T) {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	require.NoError(t, err)
	var hook *btf.Func
	if err := kernel.TypeByName("ping_pre_connect", &hook); errors.Is(err, btf.ErrNotFound) {
		oldkernel.Skip(t, 6, 1, "connect hooks of ping sockets")
	} else {
		require.NoError(t, err)
	}
}

// A v4-mapped ping socket does not exist.
var pingFamilies = []family{ipv4, ipv6}

// pingSocket is a socket of a protocol that is not load balanced, and whose hooks run all the same.
func pingSocket(t *testing.T, f family) *socket {
	t.Helper()
	needFamily(t, f)
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0))
	protocol := unix.IPPROTO_ICMP
	if f.domain == unix.AF_INET6 {
		protocol = unix.IPPROTO_ICMPV6
	}
	x, err := newSocket(f, protocol)
	require.NoError(t, err)
	x.T = t
	t.Cleanup(x.close)
	return x
}

func TestBranchC2_ConnectIsRejected(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "without a backend: EHOSTUNREACH", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, nil)
			x := s.socket()
			require.ErrorIs(s, x.tryConnect(a.front), rejection(s.T, unix.EHOSTUNREACH))
			s.counted(s.before.RejectedNoBackend, s.counters().RejectedNoBackend)
		}},
		rule{name: "without memory: ENOMEM", notLegacy: storesNothing, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			noSocketMemory(s.T)
			require.ErrorIs(s, x.tryConnect(a.front), rejection(s.T, unix.ENOMEM))
			assert.Equal(s, s.before.RejectedNoMemory+1, s.counters().RejectedNoMemory)
			assert.Zero(s, s.hashEntries())
		}},
		rule{name: "otherwise: it proceeds", play: func(s *scene) {
			s.leaves(s.host(1, firstPort))
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			s.reaches(a.front, a.backend)
		}},
	)
}

func TestBranchS1_SendIsRejected(t *testing.T) {
	holdWith(t, all(t), udp,
		rule{name: "without a backend: EHOSTUNREACH", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, nil)
			require.ErrorIs(s, s.socket().trySendTo(a.front, "lost"), rejection(s.T, unix.EHOSTUNREACH))
			s.counted(s.before.RejectedNoBackend, s.counters().RejectedNoBackend)
		}},
		rule{name: "without memory: ENOMEM", notLegacy: storesNothing, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			noSocketMemory(s.T)
			require.ErrorIs(s, x.trySendTo(a.front, "lost"), rejection(s.T, unix.ENOMEM))
			assert.Equal(s, s.before.RejectedNoMemory+1, s.counters().RejectedNoMemory)
			assert.Zero(s, s.hashEntries())
		}},
		rule{name: "a health checker's datagrams are translated, and its mark kept", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			x := s.socket()
			x.setMark(healthMark)
			s.asksService(x, a)
			assert.Equal(s, healthMark, x.mark())
			s.mayLeak = s.mode == legacy
		}},
	)
}

func TestBranchF1_HostNamespace(t *testing.T) {
	onLoopback := func(s *scene) *service {
		a := s.put(s.everywhere(nodePort), lbmap.FlagNodePort, s.to(1))
		a.front = s.loopback(nodePort)
		return a
	}
	holdWith(t, all(t), either,
		rule{name: "a socket of the namespace with the host's cookie is in it", play: func(s *scene) {
			a := onLoopback(s)
			s.reaches(a.front, a.backend)
		}},
		rule{name: "a socket of another namespace is not", play: func(s *scene) {
			s.leavesBy(s.podSocket, onLoopback(s).front)
		}},
	)
	t.Run("by default", func(t *testing.T) {
		holdWith(t, loader.DefaultFeatures(), either, rule{name: "the host's is the kernel's first namespace, not that of these tests", play: func(s *scene) {
			a := onLoopback(s)
			s.leaves(a.front)
			s.leavesBy(s.podSocket, a.front)
		}})
	})
	t.Run("that of the pod", func(t *testing.T) {
		x := newScene(t, loader.ModeStorage, ipv4, unix.IPPROTO_UDP).podSocket()
		f := all(t)
		f.HostNetnsCookie = cookieOfNetns(t, x)
		holdWith(t, f, either, rule{name: "the host's is the namespace that the cookie says", play: func(s *scene) {
			a := onLoopback(s)
			s.leaves(a.front)
			s.reachesBy(s.podSocket, a.front, a.backend)
		}})
	})
}

func TestBranchF2_HostNamespaceOnly(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "off: sockets of every namespace are translated", play: func(s *scene) {
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		s.reaches(a.front, a.backend)
		s.reachesBy(s.podSocket, a.front, a.backend)
	}})
	t.Run("on", func(t *testing.T) {
		f := none(t)
		f.HostNetnsOnly = true
		holdWith(t, f, either, rule{name: "sockets of the host's namespace only are translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			s.reaches(a.front, a.backend)
			s.leavesBy(s.podSocket, a.front)
		}})
	})
}

func TestBranchF3_Protocols(t *testing.T) {
	holdWith(t, all(t), either, rule{name: "TCP and UDP are translated", play: func(s *scene) {
		a := s.put(s.host(1, firstPort), 0, s.to(1))
		s.reaches(a.front, a.backend)
	}})
	udplite := []int{unix.IPPROTO_UDPLITE}
	if !haveUDPLite(t) {
		udplite = nil
	}
	holdWith(t, all(t), udplite, rule{name: "UDP-Lite is translated", play: func(s *scene) {
		// Its connects have no hook in any kernel.
		x, server := s.socket(), s.bound(1)
		a := s.put(s.host(1, firstPort), 0, []lbmap.Backend{{AddrPort: server.sockname(), Protocol: lbmap.ProtocolUDPLite}})
		x.sendTo(a.front, "question")
		payload, from := server.receive()
		assert.Equal(s, "question", payload)
		server.sendTo(from, "answer")
		_, from = x.receive()
		same(s, a.front, from, "source of the answer")
		s.mayLeak = s.mode == legacy
	}})
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			for _, f := range pingFamilies {
				t.Run("a ping socket is left alone, "+f.name, func(t *testing.T) {
					x := pingSocket(t, f)
					s := newScene(t, mode, f, unix.IPPROTO_UDP)
					a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
					x.connect(a.front)
					same(s, a.front, x.peername(), "getpeername")
					none := s.put(s.host(2, firstPort), 0, nil, anyProtocol)
					x.connect(none.front)
					assert.Equal(s, s.before.Translated, s.counters().Translated)
				})
			}
		})
	}
}

func TestBranchF4_Lookup(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "by address and port", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			s.reaches(a.front, a.backend)
			s.leaves(s.host(2, firstPort))
			s.leaves(s.host(1, firstPort+1))
		}},
		rule{name: "by protocol", play: func(s *scene) {
			other := func(svc *lbmap.Service) {
				svc.Frontend.Protocol = unix.IPPROTO_TCP + unix.IPPROTO_UDP - svc.Frontend.Protocol
			}
			s.put(s.host(1, firstPort), 0, s.to(2), other)
			s.leaves(s.host(1, firstPort))
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			s.reaches(a.front, a.backend)
		}},
		rule{name: "for any protocol, if there is none for this one", notReference: noAnyProtocol, play: func(s *scene) {
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			s.reaches(a.front, a.backend)
			b := s.put(s.host(1, firstPort), 0, s.to(2))
			s.reaches(b.front, b.backend)
		}},
		rule{name: "in the external scope", play: func(s *scene) {
			s.put(s.host(1, firstPort), 0, s.to(2), internal)
			s.leaves(s.host(1, firstPort))
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			s.reaches(a.front, a.backend)
		}},
		rule{name: "with two scopes: in the internal one", play: func(s *scene) {
			s.put(s.host(1, firstPort), lbmap.FlagTwoScopes, s.to(1))
			s.leaves(s.host(1, firstPort))
			a := s.put(s.host(1, firstPort), lbmap.FlagTwoScopes, s.to(2), internal)
			s.reaches(a.front, a.backend)
		}},
	)
	t.Run("without protocol differentiation", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "only services of any protocol are found", notReference: noAnyProtocol, play: func(s *scene) {
			s.put(s.host(1, firstPort), 0, s.to(2))
			s.leaves(s.host(1, firstPort))
			a := s.put(s.host(1, firstPort), 0, s.to(1), anyProtocol)
			s.reaches(a.front, a.backend)
		}})
	})
}

const worldIdentity = 2

func TestBranchF5_NodePort(t *testing.T) {
	publish := func(s *scene, port uint16, flags lbmap.ServiceFlags) netip.AddrPort {
		return s.put(s.everywhere(port), flags, s.to(1)).backend
	}
	holdWith(t, all(t), either,
		rule{name: "on loopback of the host's namespace: translated", play: func(s *scene) {
			backend := publish(s, nodePort, lbmap.FlagNodePort)
			s.reaches(s.loopback(nodePort), backend)
		}},
		rule{name: "on loopback of another namespace: left alone", play: func(s *scene) {
			publish(s, nodePort, lbmap.FlagNodePort)
			s.leavesBy(s.podSocket, s.loopback(nodePort))
		}},
		rule{name: "on an address of this host, from any namespace: translated", play: func(s *scene) {
			backend := publish(s, nodePort, lbmap.FlagNodePort)
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			s.reaches(s.host(1, nodePort), backend)
			s.reachesBy(s.podSocket, s.host(1, nodePort), backend)
		}},
		rule{name: "on a remote node of this cluster: translated", play: func(s *scene) {
			backend := publish(s, nodePort, lbmap.FlagNodePort)
			s.identify(s.host(1, 0), lbmap.IdentityRemoteNode, 0)
			s.reaches(s.host(1, nodePort), backend)
		}},
		rule{name: "on a remote node of another cluster: left alone", play: func(s *scene) {
			publish(s, nodePort, lbmap.FlagNodePort)
			s.identify(s.host(1, 0), lbmap.IdentityRemoteNode, lbmap.IPCacheRemoteCluster)
			s.leaves(s.host(1, nodePort))
		}},
		rule{name: "on an address of the world, or of who knows whom: left alone", play: func(s *scene) {
			publish(s, nodePort, lbmap.FlagNodePort)
			s.leaves(s.host(1, nodePort))
			s.identify(s.host(1, 0), worldIdentity, 0)
			s.leaves(s.host(1, nodePort))
		}},
		rule{name: "the range has its first and last port", play: func(s *scene) {
			for i, port := range edges {
				backend := publish(s, port, lbmap.FlagNodePort)
				if i == 1 || i == 2 {
					s.reaches(s.loopback(port), backend)
				} else {
					s.leaves(s.loopback(port))
				}
			}
		}},
		rule{name: "in the range, a service that is no node port: left alone", play: func(s *scene) {
			publish(s, nodePort, lbmap.FlagHostPort)
			s.leaves(s.loopback(nodePort))
		}},
		rule{name: "a service of the address itself comes first", play: func(s *scene) {
			publish(s, nodePort, lbmap.FlagNodePort)
			a := s.put(s.loopback(nodePort), 0, s.to(2))
			s.reaches(a.front, a.backend)
		}},
	)
	t.Run("off", func(t *testing.T) {
		holdWith(t, none(t), either, rule{name: "left alone", play: func(s *scene) {
			s.put(s.everywhere(nodePort), lbmap.FlagNodePort, s.to(1), anyProtocol)
			s.put(s.everywhere(hostPort), lbmap.FlagHostPort, s.to(1), anyProtocol)
			s.leaves(s.loopback(nodePort))
			s.leaves(s.loopback(hostPort))
		}})
	})
}

func TestBranchF5_HostPort(t *testing.T) {
	publish := func(s *scene, flags lbmap.ServiceFlags) netip.AddrPort {
		return s.put(s.everywhere(hostPort), flags, s.to(1)).backend
	}
	holdWith(t, all(t), either,
		rule{name: "on loopback of the host's namespace: translated", play: func(s *scene) {
			s.reaches(s.loopback(hostPort), publish(s, lbmap.FlagHostPort))
		}},
		rule{name: "on loopback of another namespace: left alone", play: func(s *scene) {
			publish(s, lbmap.FlagHostPort)
			s.leavesBy(s.podSocket, s.loopback(hostPort))
		}},
		rule{name: "on an address of this host: translated", play: func(s *scene) {
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			s.reaches(s.host(1, hostPort), publish(s, lbmap.FlagHostPort))
		}},
		rule{name: "on another node: left alone", play: func(s *scene) {
			publish(s, lbmap.FlagHostPort)
			s.identify(s.host(1, 0), lbmap.IdentityRemoteNode, 0)
			s.leaves(s.host(1, hostPort))
			// Not found, rather than found and left to the packet path (F10).
			s.put(s.everywhere(hostPort), lbmap.FlagHostPort, nil)
			s.leaves(s.host(1, hostPort))
		}},
		rule{name: "of loopback only, on loopback: translated", play: func(s *scene) {
			s.reaches(s.loopback(hostPort), publish(s, lbmap.FlagHostPort|lbmap.FlagLoopback))
		}},
		rule{name: "of loopback only, on an address of this host: left alone", play: func(s *scene) {
			publish(s, lbmap.FlagHostPort|lbmap.FlagLoopback)
			s.identify(s.host(1, 0), lbmap.IdentityHost, 0)
			s.leaves(s.host(1, hostPort))
		}},
		rule{name: "outside the range, a service that is no host port: left alone", play: func(s *scene) {
			publish(s, lbmap.FlagNodePort)
			s.leaves(s.loopback(hostPort))
		}},
	)
}

func TestBranchF6_NoService(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "left alone", play: func(s *scene) {
			s.leaves(s.host(1, firstPort))
			s.leavesBy(s.podSocket, s.host(1, firstPort))
		}},
		rule{name: "an IPv6 socket finds the IPv4 service by its v4-mapped address", play: func(s *scene) {
			if !s.mapped {
				return
			}
			a := s.put(s.host(1, firstPort), 0, s.to(1))
			require.True(s, a.front.Addr().Is4())
			s.reaches(a.front, a.backend)
		}},
	)
}

func TestBranchF7_NoBackends(t *testing.T) {
	holdWith(t, all(t), either,
		rule{name: "rejected", play: func(s *scene) {
			s.refuses(s.put(s.host(1, firstPort), 0, nil).front)
		}},
		rule{name: "rejected, whatever would leave it alone otherwise", play: func(s *scene) {
			for i, flags := range []lbmap.ServiceFlags{
				lbmap.FlagL7Delegate, lbmap.FlagNAT46x64, lbmap.FlagExternalIP, lbmap.FlagHostPort, lbmap.FlagLocalRedirect,
			} {
				s.refuses(s.put(s.host(i, firstPort), flags, nil).front)
			}
		}},
		rule{name: "with quarantined ones only: rejected", play: func(s *scene) {
			backends := s.to(1)
			backends[0].Quarantined = true
			s.refuses(s.put(s.host(1, firstPort), 0, backends).front)
		}},
		rule{name: "but with an L7 proxy: translated", play: func(s *scene) {
			a := s.put(s.host(1, firstPort), lbmap.FlagL7LoadBalancer, nil, proxied)
			s.reaches(a.front, s.loopback(proxyPort))
		}},
	)
	t.Run("not to be rejected", func(t *testing.T) {
		holdWith(t, none(t), either,
			rule{name: "left alone", play: func(s *scene) {
				s.leaves(s.put(s.host(1, firstPort), 0, nil, anyProtocol).front)
			}},
			rule{name: "the traffic policy is local: rejected all the same", play: func(s *scene) {
				s.refuses(s.put(s.host(0, firstPort), lbmap.FlagInternalLocal, nil, anyProtocol).front)
				for i, flags := range protected {
					s.refuses(s.put(s.host(1+i, firstPort), flags|lbmap.FlagExternalLocal, nil, anyProtocol).front)
				}
			}},
			rule{name: "the other traffic policy is local: left alone", play: func(s *scene) {
				s.leaves(s.put(s.host(0, firstPort), lbmap.FlagExternalLocal, nil, anyProtocol).front)
				for i, flags := range protected {
					s.leaves(s.put(s.host(1+i, firstPort), flags|lbmap.FlagInternalLocal, nil, anyProtocol).front)
				}
			}},
		)
	})
}
