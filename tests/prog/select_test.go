// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/revsk/revsk/lbmap"
)

// selection is a rule for the choice of a backend, for sockets of every family.
type selection struct {
	name   string
	config map[string]any // constants that differ from their defaults
	play   func(s *scene)
}

func holdForSelection(t *testing.T, selections ...selection) {
	t.Helper()
	holdSelections(t, false, selections)
}

// holdByProtocolToo is for rules that hold as well where a service is for one protocol: such a one is found by the first lookup, and
// decided about at once if it is plain.
func holdByProtocolToo(t *testing.T, selections ...selection) {
	t.Helper()
	holdSelections(t, true, selections)
}

func holdSelections(t *testing.T, byProtocolToo bool, selections []selection) {
	t.Helper()
	for _, sel := range selections {
		t.Run(sel.name, func(t *testing.T) {
			h := shared
			if sel.config != nil {
				h = load(t, options{programs: selectionPrograms, constants: sel.config})
			}
			sel.hold(t, h)
			if byProtocolToo {
				t.Run("by protocol", func(t *testing.T) {
					for _, f := range families {
						t.Run(f.name, func(t *testing.T) {
							s := newScene(t, h, f, false)
							s.byProtocol = true
							sel.holdFor(s)
						})
					}
				})
			}
		})
	}
}

var selectionPrograms = []string{"lb_select", "service_lookup", "service_stands", "bind_would_hijack", "release"}

func (sel selection) hold(t *testing.T, h *harness) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { sel.holdFor(newScene(t, h, f, false)) })
	}
}

func (sel selection) holdFor(s *scene) {
	sel.play(s)
	s.counted(counts{})
}

func off(name string) map[string]any { return map[string]any{name: false} }
func on(name string) map[string]any  { return map[string]any{name: true} }

func TestSelectBackend(t *testing.T) {
	holdByProtocolToo(t,
		selection{"an address without a service is left alone", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			for _, other := range neighbours(s.family.service(1)) {
				s.wantUntranslated(s.to(other))
			}
			s.wantUntranslated(s.to(s.family.backend(1)))
		}},
		selection{"a service goes to its backend", nil, func(s *scene) {
			s.put(service{backends: []int{7}})
			s.wantBackend(s.toService1(), 7)
			s.wantBackend(s.toService1().over(lbmap.ProtocolTCP), 7)
			s.wantBackend(s.toService1().over(lbmap.ProtocolUDPLite), 7)
			s.wantBackend(s.toService1().byPod(), 7)
		}},
		selection{"the tuple has the index of the service", nil, func(s *scene) {
			s.put(service{revNat: 0x1234, backends: []int{7}})
			want := s.tuple(1, 7).at(0)
			want.revNat = 0x1234
			s.wantTuple(s.toService1(), want)
		}},
		selection{"the tuple has the port of the backend and that of the service", nil, func(s *scene) {
			s.put(service{backends: []int{7}})
			want := s.tuple(1, 7).at(0)
			want.peer = netip.AddrPortFrom(want.peer.Addr(), 0x1235)
			s.putBackend(7, want.peer)
			s.wantTuple(s.toService1(), want)
		}},
		selection{"a backend may have the address and port of the service", nil, func(s *scene) {
			s.put(service{backends: []int{7}})
			s.putBackend(7, s.family.service(1))
			want := s.tuple(1, 7).at(0)
			want.peer = s.family.service(1)
			s.wantTuple(s.toService1(), want)
		}},
		selection{"a datagram socket keeps to the backend that its cookie chooses", nil, func(s *scene) {
			s.put(service{backends: []int{10, 11, 12}})
			for cookie := uint64(1); cookie < 10; cookie++ {
				for _, p := range []lbmap.Protocol{lbmap.ProtocolUDP, lbmap.ProtocolUDPLite} {
					s.wantBackend(s.toService1().over(p).by(cookie), 10+int(cookie%3))
					s.wantBackend(s.toService1().over(p).by(cookie|1<<40), 10+int((cookie|1<<40)%3))
				}
			}
		}},
		selection{"a stream socket goes to any backend", nil, func(s *scene) {
			s.put(service{backends: []int{10, 11, 12}})
			drawn := s.draws(s.toService1().over(lbmap.ProtocolTCP), 300)
			if got := slices.Sorted(maps.Keys(drawn)); !slices.Equal(got, []int{10, 11, 12}) {
				s.Errorf("backends drawn: %v", drawn)
			}
			for n, times := range drawn {
				if times < 50 {
					s.Errorf("backend %d was drawn %d times of 300", n, times)
				}
			}
		}},
		selection{"the cookie is asked for of datagram sockets only", nil, func(s *scene) {
			s.put(service{backends: []int{10, 11, 12}})
			for p, want := range map[lbmap.Protocol]uint64{
				lbmap.ProtocolTCP: 0, lbmap.ProtocolUDP: 1, lbmap.ProtocolUDPLite: 1,
			} {
				out := s.h.run(s.T, "lb_select", s.requestInput(s.toService1().over(p)))
				if out.CookieAsked != want {
					s.Errorf("%v: asked for the cookie %d times, want %d", p, out.CookieAsked, want)
				}
			}
		}},
		selection{"quarantined backends are never chosen", nil, func(s *scene) {
			s.put(service{backends: []int{10, 11}, quarantined: []int{20, 21, 22}})
			for cookie := uint64(1); cookie < 10; cookie++ {
				s.wantBackend(s.toService1().by(cookie), 10+int(cookie%2))
			}
			drawn := s.draws(s.toService1().over(lbmap.ProtocolTCP), 200)
			if got := slices.Sorted(maps.Keys(drawn)); !slices.Equal(got, []int{10, 11}) {
				s.Errorf("backends drawn: %v", drawn)
			}
		}},
		selection{"a service with quarantined backends only has none", nil, func(s *scene) {
			s.put(service{quarantined: []int{20}})
			s.wantUnreachable(s.toService1())
		}},
		selection{"a missing slot is unreachable", nil, func(s *scene) {
			s.put(service{backends: []int{10}, countMore: 1})
			s.wantBackend(s.toService1().by(2), 10)
			s.wantUnreachable(s.toService1().by(3))
		}},
		selection{"a slot without a backend is unreachable", nil, func(s *scene) {
			s.put(service{backends: []int{0}})
			s.wantUnreachable(s.toService1())
		}},
		selection{"a missing backend is unreachable", nil, func(s *scene) {
			s.put(service{backends: []int{10}, noBackends: true})
			s.wantUnreachable(s.toService1())
		}},
		selection{"a backend without a port is unreachable", nil, func(s *scene) {
			s.put(service{backends: []int{10}})
			s.putBackend(10, netip.AddrPortFrom(s.family.backend(10).Addr(), 0))
			s.wantUnreachable(s.toService1())
			s.wantUnreachable(s.toService1().over(lbmap.ProtocolTCP))
		}},
	)
}

func TestSelectScope(t *testing.T) {
	holdByProtocolToo(t,
		selection{"a service is looked up in the external scope", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.put(service{scope: lbmap.ScopeInternal, backends: []int{2}})
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"a service in the internal scope alone is none", nil, func(s *scene) {
			s.put(service{scope: lbmap.ScopeInternal, backends: []int{2}})
			s.wantUntranslated(s.toService1())
		}},
		selection{"a service with two scopes goes to its internal backends", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagTwoScopes, backends: []int{1, 1}})
			s.put(service{
				scope: lbmap.ScopeInternal, flags: lbmap.FlagTwoScopes, backends: []int{2, 3, 4},
			})
			for cookie := uint64(1); cookie < 6; cookie++ {
				s.wantBackend(s.toService1().by(cookie), 2+int(cookie%3))
			}
		}},
		selection{"a service with two scopes and no internal entry is none", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagTwoScopes, backends: []int{1}})
			s.wantUntranslated(s.toService1())
		}},
	)
}

func TestSelectProtocol(t *testing.T) {
	const tcp, udp = lbmap.ProtocolTCP, lbmap.ProtocolUDP
	holdForSelection(t,
		selection{"the service of the protocol comes first", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.put(service{protocol: udp, backends: []int{2}})
			s.put(service{protocol: tcp, backends: []int{3}})
			s.wantBackend(s.toService1().over(udp), 2)
			s.wantBackend(s.toService1().over(tcp), 3)
		}},
		selection{"the service of any protocol is the fallback, with its own slots", nil, func(s *scene) {
			s.put(service{backends: []int{1, 4}})
			s.put(service{protocol: tcp, backends: []int{3}})
			s.wantBackend(s.toService1().over(udp).by(2), 1)
			s.wantBackend(s.toService1().over(udp).by(3), 4)
		}},
		selection{"the service of another protocol is none", nil, func(s *scene) {
			s.put(service{protocol: tcp, backends: []int{3}})
			s.wantUntranslated(s.toService1().over(udp))
			s.wantUntranslated(s.toService1().over(lbmap.ProtocolUDPLite))
		}},
		selection{
			"without differentiation only services of any protocol count", off("protocol_differentiation"),
			func(s *scene) {
				s.put(service{backends: []int{1}})
				s.put(service{protocol: udp, backends: []int{2}})
				s.wantBackend(s.toService1().over(udp), 1)
				s.wantUntranslated(s.to(s.family.service(2)))
				s.put(service{frontend: s.family.service(2), protocol: udp, backends: []int{2}})
				s.wantUntranslated(s.to(s.family.service(2)))
			},
		},
		selection{"without the lookup for any protocol only those of the protocol count", off("any_protocol"), func(s *scene) {
			s.put(service{backends: []int{1}})
			s.wantUntranslated(s.toService1())
			s.put(service{protocol: udp, backends: []int{2}})
			s.wantBackend(s.toService1(), 2)
			s.wantUntranslated(s.toService1().over(tcp))
			on := netip.AddrPortFrom(s.family.loopback.Unmap(), 30080)
			nodePort := service{
				frontend: netip.AddrPortFrom(s.unspecified(), 30080), flags: lbmap.FlagNodePort, backends: []int{3},
			}
			s.put(nodePort)
			s.wantUntranslated(s.to(on))
			nodePort.protocol = udp
			s.put(nodePort)
			s.wantBackend(s.to(on), 3)
			s.put(service{protocol: udp, flags: lbmap.FlagTwoScopes, backends: []int{4}})
			s.put(service{scope: lbmap.ScopeInternal, backends: []int{5}})
			s.wantUntranslated(s.toService1())
			s.put(service{protocol: udp, scope: lbmap.ScopeInternal, backends: []int{6}})
			s.wantBackend(s.toService1(), 6)
		}},
		selection{
			"without either lookup by protocol those of any protocol count",
			map[string]any{"protocol_differentiation": false, "any_protocol": false},
			func(s *scene) {
				s.put(service{backends: []int{1}})
				s.put(service{protocol: udp, backends: []int{2}})
				s.wantBackend(s.toService1().over(udp), 1)
				s.wantBackend(s.toService1().over(tcp), 1)
			},
		},
		selection{"each scope is looked up by the protocol, or else any", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagTwoScopes, backends: []int{1}})
			s.put(service{scope: lbmap.ScopeInternal, backends: []int{2}})
			s.put(service{protocol: tcp, scope: lbmap.ScopeInternal, backends: []int{3}})
			s.wantBackend(s.toService1().over(tcp), 3)
			s.wantBackend(s.toService1().over(udp), 2)
		}},
	)
}

func TestSelectFamily(t *testing.T) {
	v6 := func(s *scene) bool { return s.family.services.Is6() }
	holdForSelection(t,
		selection{"IPv4 off leaves IPv4 alone, v4-mapped or not", off("ipv4"), func(s *scene) {
			s.put(service{backends: []int{1}})
			if v6(s) {
				s.wantBackend(s.toService1(), 1)
			} else {
				s.wantUntranslated(s.toService1())
			}
		}},
		selection{"an address that only ends like a v4-mapped one is not IPv4", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			a := s.family.service(1)
			wide := a.Addr().As16()
			wide[0] = 0x20
			s.wantUntranslated(s.to(netip.AddrPortFrom(netip.AddrFrom16(wide), a.Port())))
		}},
		selection{"IPv6 off leaves IPv6 alone", off("ipv6"), func(s *scene) {
			s.put(service{backends: []int{1}})
			if v6(s) {
				s.wantUntranslated(s.toService1())
			} else {
				s.wantBackend(s.toService1(), 1)
			}
		}},
	)
}

func TestSelectByNetworkNamespace(t *testing.T) {
	hostOnly := on("host_netns_only")
	holdForSelection(t,
		selection{"host namespace only: the host's sockets are translated", hostOnly, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"host namespace only: others are left alone", hostOnly, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.wantUntranslated(s.toService1().byPod())
		}},
		selection{
			"the host's namespace may be another than the kernel's first one",
			map[string]any{"host_netns_only": true, "host_netns_cookie": uint64(otherNetns)},
			func(s *scene) {
				s.put(service{backends: []int{1}})
				s.wantUntranslated(s.toService1())
				s.wantBackend(s.toService1().byPod(), 1)
			},
		},
	)
}

func TestSelectWithoutBackends(t *testing.T) {
	untouched := off("reject_no_backend")
	holdByProtocolToo(t,
		selection{"no backends: rejected", nil, func(s *scene) {
			s.put(service{})
			s.wantUnreachable(s.toService1())
		}},
		selection{"no backends, configured so: left alone", untouched, func(s *scene) {
			s.put(service{})
			s.wantUntranslated(s.toService1())
		}},
		selection{"no backends, external traffic policy local: rejected all the same", untouched, func(s *scene) {
			for _, outside := range toTheOutside {
				s.put(service{flags: lbmap.FlagExternalLocal | outside})
				s.wantUnreachable(s.toService1())
			}
		}},
		selection{"no backends, external traffic policy local, of a service within the cluster: left alone", untouched, func(s *scene) {
			s.put(service{flags: lbmap.FlagExternalLocal})
			s.wantUntranslated(s.toService1())
		}},
		selection{"no backends, internal traffic policy local: rejected all the same", untouched, func(s *scene) {
			s.put(service{flags: lbmap.FlagInternalLocal})
			s.wantUnreachable(s.toService1())
		}},
		selection{"no backends, internal traffic policy local, of a service to the outside: left alone", untouched, func(s *scene) {
			for _, outside := range toTheOutside {
				s.put(service{flags: lbmap.FlagInternalLocal | outside})
				s.wantUntranslated(s.toService1())
			}
		}},
		selection{"no backends, but an L7 proxy: translated", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, word: proxyPort()})
			s.wantProxy(s.toService1())
		}},
		selection{"no backends, L7 without a proxy port: rejected", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer})
			s.wantUnreachable(s.toService1())
		}},
		selection{"no backends, L7 with a proxy port that is none: rejected", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, word: 1 << 16})
			s.wantUnreachable(s.toService1())
		}},
		selection{"no backends come before the reasons to leave a service alone", nil, func(s *scene) {
			for _, flags := range []lbmap.ServiceFlags{
				lbmap.FlagL7Delegate, lbmap.FlagNAT46x64, lbmap.FlagExternalIP, lbmap.FlagHostPort,
			} {
				s.put(service{flags: flags})
				s.wantUnreachable(s.toService1())
			}
		}},
	)
}

// proxy is the port of the local L7 proxy.
const proxy = 0x1234

func proxyPort() uint32 {
	var v lbmap.ServiceValue
	v.SetL7ProxyPort(proxy)
	return v.Union
}

// wantProxy checks that a request for service 1 goes to the local proxy.
func (s *scene) wantProxy(r request) {
	s.Helper()
	s.wantTuple(r, tuple{
		peer:    netip.AddrPortFrom(s.family.loopback.Unmap(), proxy),
		service: r.dst, revNat: 1,
	})
}

func TestSelectL7(t *testing.T) {
	l7 := service{flags: lbmap.FlagL7LoadBalancer, word: proxyPort(), backends: []int{1}}
	holdByProtocolToo(t,
		selection{"L7 service on the host: the proxy on loopback, no backend", nil, func(s *scene) {
			s.put(l7)
			s.wantProxy(s.toService1())
			s.wantProxy(s.toService1().over(lbmap.ProtocolTCP))
		}},
		selection{"L7 service elsewhere: left alone", nil, func(s *scene) {
			s.put(l7)
			s.wantUntranslated(s.toService1().byPod())
		}},
		selection{"L7 service, L7 off: an ordinary service", off("l7"), func(s *scene) {
			s.put(l7)
			s.wantBackend(s.toService1(), 1)
			s.wantBackend(s.toService1().byPod(), 1)
		}},
		selection{"L7 service, L7 off, no backends: rejected", off("l7"), func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, word: proxyPort()})
			s.wantUnreachable(s.toService1())
		}},
		selection{"L7 service without a proxy port: an ordinary service", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, backends: []int{1}})
			s.wantBackend(s.toService1().byPod(), 1)
		}},
		selection{"a proxy port without the flag is none", nil, func(s *scene) {
			s.put(service{word: proxyPort(), backends: []int{1}})
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"L7 delegate: left alone", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7Delegate, backends: []int{1}})
			s.wantUntranslated(s.toService1())
		}},
		selection{"the bit of the L7 delegate means another thing in a host port", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagHostPort | lbmap.FlagLoopback, backends: []int{1}})
			s.identify(s.family.service(1).Addr(), lbmap.IdentityHost, 0)
			s.wantBackend(s.toService1(), 1)
		}},
	)
}

func TestSelectLeftToPacketPath(t *testing.T) {
	const world = 2
	host := func(s *scene, identity uint32) { s.identify(s.family.service(1).Addr(), identity, 0) }
	external := service{flags: lbmap.FlagExternalIP, backends: []int{1}}
	hostPort := service{flags: lbmap.FlagHostPort, backends: []int{1}}
	holdByProtocolToo(t,
		selection{"46x64: left alone, for an address of the host too", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagNAT46x64, backends: []int{1}})
			s.wantUntranslated(s.toService1())
			host(s, lbmap.IdentityHost)
			s.wantUntranslated(s.toService1())
		}},
		selection{"external IP of who knows whom: left alone", nil, func(s *scene) {
			s.put(external)
			s.wantUntranslated(s.toService1())
		}},
		selection{"external IP of another node or the world: left alone", nil, func(s *scene) {
			s.put(external)
			for _, identity := range []uint32{lbmap.IdentityRemoteNode, world} {
				host(s, identity)
				s.wantUntranslated(s.toService1())
			}
		}},
		selection{"external IP of this host: translated", nil, func(s *scene) {
			s.put(external)
			host(s, lbmap.IdentityHost)
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"external IP, mitigation off: translated", off("external_ip_mitigation"), func(s *scene) {
			s.put(external)
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"host port of another address than the host's: left alone", nil, func(s *scene) {
			s.put(hostPort)
			s.wantUntranslated(s.toService1())
			host(s, lbmap.IdentityRemoteNode)
			s.wantUntranslated(s.toService1())
		}},
		selection{"host port, mitigation off: left alone all the same", off("external_ip_mitigation"), func(s *scene) {
			s.put(hostPort)
			s.wantUntranslated(s.toService1())
		}},
		selection{"host port of this host: translated", nil, func(s *scene) {
			s.put(hostPort)
			host(s, lbmap.IdentityHost)
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"host port on loopback: translated", nil, func(s *scene) {
			on := netip.AddrPortFrom(s.family.loopback.Unmap(), 80)
			s.put(service{frontend: on, flags: lbmap.FlagHostPort, backends: []int{1}})
			s.wantBackend(s.to(on), 1)
		}},
		selection{"the reasons to leave a service alone go by the service, not by its slots", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			key := lbmap.ServiceKey{AddrPort: s.family.service(1), Slot: 1}
			slot := lbmap.ServiceValue{RevNat: 1, Flags: lbmap.FlagNAT46x64 | lbmap.FlagExternalIP}
			slot.SetBackendID(1)
			must(s.T, s.h.servicesFor(s.family.services).Put(key, slot))
			s.wantBackend(s.toService1(), 1)
		}},
	)
}

func TestSelectLocalRedirect(t *testing.T) {
	redirect := service{flags: lbmap.FlagLocalRedirect, backends: []int{1}}
	holdByProtocolToo(t,
		selection{"local redirect: translated", nil, func(s *scene) {
			s.put(redirect)
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"local redirect, this namespace skips the service: left alone", nil, func(s *scene) {
			s.put(redirect)
			s.skip(otherNetns, s.family.service(1))
			s.wantUntranslated(s.toService1().byPod())
		}},
		selection{"local redirect, another namespace skips the service: translated", nil, func(s *scene) {
			s.put(redirect)
			s.skip(otherNetns, s.family.service(1))
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"local redirect, this namespace skips another service: translated", nil, func(s *scene) {
			s.put(redirect)
			for _, other := range neighbours(s.family.service(1)) {
				s.skip(hostNetns, other)
			}
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"skip entries of other services are not honoured", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.skip(hostNetns, s.family.service(1))
			s.wantBackend(s.toService1(), 1)
		}},
		selection{"local redirect off: skip entries are not honoured", off("local_redirect"), func(s *scene) {
			s.put(redirect)
			s.skip(hostNetns, s.family.service(1))
			s.wantBackend(s.toService1(), 1)
		}},
	)
}

func TestSelectAffinity(t *testing.T) {
	const timeout = 100
	sticky := service{
		flags: lbmap.FlagAffinity, word: timeout | 0xff<<24, // the high byte is an algorithm
		backends: []int{10, 11, 12},
	}
	// The cookie of the request would choose 11.
	holdByProtocolToo(t,
		selection{"the backend chosen first is remembered", nil, func(s *scene) {
			s.put(sticky)
			s.wantBackend(s.toService1(), 11)
			s.wantAffinity(hostNetns, 11)
		}},
		selection{"the backend used last is kept, and the clock starts again", nil, func(s *scene) {
			s.put(sticky)
			s.match(12)
			s.stick(hostNetns, 12, (timeout-60)*time.Second)
			s.wantBackend(s.toService1(), 12)
			s.wantAffinity(hostNetns, 12)
		}},
		selection{"the backend chosen first is kept by every socket", nil, func(s *scene) {
			s.put(sticky)
			s.match(10, 11, 12)
			for cookie := uint64(4); cookie < 10; cookie++ {
				s.wantBackend(s.toService1().by(cookie), 11)
				s.wantBackend(s.toService1().by(cookie).over(lbmap.ProtocolTCP), 11)
			}
		}},
		selection{"after the timeout a backend is chosen anew", nil, func(s *scene) {
			s.put(sticky)
			s.match(12)
			s.stick(hostNetns, 12, (timeout+1)*time.Second)
			s.wantBackend(s.toService1(), 11)
			s.wantAffinity(hostNetns, 11)
		}},
		selection{"a backend that is no longer one of the service's is not kept", nil, func(s *scene) {
			s.put(sticky)
			s.putBackend(20, s.family.backend(20))
			s.stick(hostNetns, 20, 0)
			s.wantBackend(s.toService1(), 11)
			s.wantAffinity(hostNetns, 11)
		}},
		selection{"a match for another service does not count", nil, func(s *scene) {
			s.put(sticky)
			s.stick(hostNetns, 12, 0)
			key := lbmap.AffinityMatchKey{BackendID: 12, RevNat: 2}
			must(s.T, s.h.m(harnessMapCiliumLbAffinityMatch).Put(key, uint8(0)))
			s.wantBackend(s.toService1(), 11)
		}},
		selection{"a backend that does not exist is replaced", nil, func(s *scene) {
			s.put(sticky)
			s.match(20)
			s.stick(hostNetns, 20, 0)
			s.wantBackend(s.toService1(), 11)
			s.wantAffinity(hostNetns, 11)
		}},
		selection{"what another program has rejected leaves no entry", nil, func(s *scene) {
			s.put(sticky)
			s.isRejected = true
			s.wantUntranslated(s.toService1())
			s.wantNoAffinity(hostNetns)
		}},
		selection{"an entry that no longer holds is deleted though no other backend is found", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagAffinity, word: timeout, backends: []int{10}, noBackends: true})
			s.match(12)
			s.stick(hostNetns, 12, (timeout+1)*time.Second)
			s.wantUnreachable(s.toService1())
			s.wantNoAffinity(hostNetns)
			s.stick(hostNetns, 13, 0)
			s.wantUnreachable(s.toService1())
			s.wantNoAffinity(hostNetns)
		}},
		selection{"each network namespace keeps its own backend", nil, func(s *scene) {
			s.put(sticky)
			s.match(10, 12)
			s.stick(hostNetns, 12, time.Second)
			s.stick(otherNetns, 10, time.Second)
			s.wantBackend(s.toService1(), 12)
			s.wantBackend(s.toService1().byPod(), 10)
		}},
		selection{"each service has its own affinity", nil, func(s *scene) {
			s.put(sticky)
			s.match(12)
			s.stick(hostNetns, 12, time.Second)
			second := sticky
			second.frontend, second.revNat = s.family.service(2), 2
			s.put(second)
			if _, t := s.selects(s.to(s.family.service(2))); t.backendID != 11 {
				s.Errorf("the other service goes to backend %d, want 11", t.backendID)
			}
		}},
		selection{"a service without affinity has none", nil, func(s *scene) {
			plain := sticky
			plain.flags = 0
			s.put(plain)
			s.match(12)
			s.stick(hostNetns, 12, 0)
			s.wantBackend(s.toService1(), 11)
			s.wantNoAffinity(otherNetns)
			s.wantBackend(s.toService1().byPod(), 11)
			s.wantNoAffinity(otherNetns)
		}},
		selection{"an agent whose clock is in jiffies: so are the entries", map[string]any{"affinity_hz": uint32(1000)}, func(s *scene) {
			const timeoutInUnits = timeout * 1000 / 256
			s.put(sticky)
			s.match(12)
			before := jiffies(s.T) / 256
			s.wantBackend(s.toService1(), 11)
			v, _ := s.affinity(hostNetns)
			if after := jiffies(s.T) / 256; v.LastUsed < before || v.LastUsed > after {
				s.Errorf("last used at %d, which is not between %d and %d", v.LastUsed, before, after)
			}
			for ago, want := range map[uint64]int{timeoutInUnits - 200: 12, timeoutInUnits + 1: 11} {
				old := lbmap.AffinityValue{LastUsed: v.LastUsed - ago, BackendID: 12}
				must(s.T, s.affinities().Put(s.affinityKey(hostNetns), old))
				s.wantBackend(s.toService1(), want)
				if now, _ := s.affinity(hostNetns); now.LastUsed < v.LastUsed {
					s.Errorf("last used at %d, want at least %d", now.LastUsed, v.LastUsed)
				}
			}
		}},
		selection{"affinity off: none", off("session_affinity"), func(s *scene) {
			s.put(sticky)
			s.match(12)
			s.stick(hostNetns, 12, 0)
			s.wantBackend(s.toService1(), 11)
			s.wantBackend(s.toService1().byPod(), 11)
			s.wantNoAffinity(otherNetns)
		}},
		selection{"an L7 service has no affinity", nil, func(s *scene) {
			s.put(service{
				flags: lbmap.FlagAffinity | lbmap.FlagL7LoadBalancer, word: proxyPort(), backends: []int{1},
			})
			s.wantProxy(s.toService1())
			s.wantNoAffinity(hostNetns)
		}},
	)
}

// remoteNodes are identities of other nodes: any, one that runs the API server, and those of nodes that have one of
// their own.
var remoteNodes = []uint32{
	lbmap.IdentityRemoteNode, lbmap.IdentityAPIServerNode, lbmap.IdentityScopeRemoteNode, lbmap.IdentityScopeRemoteNode | 0xffffff,
}

// Node ports and host ports are services of the unspecified address.
func TestSelectWildcard(t *testing.T) {
	const nodePort, port = 30080, 8080
	wildcard := func(s *scene, port uint16, flags lbmap.ServiceFlags) {
		frontend := netip.AddrPortFrom(s.unspecified(), port)
		s.put(service{frontend: frontend, flags: flags, backends: []int{1}})
	}
	// node is an address of a node, with an identity.
	node := func(s *scene, identity uint32, flags lbmap.IPCacheFlags) netip.Addr {
		a := s.family.service(0xbeef).Addr()
		s.identify(a, identity, flags)
		return a
	}
	onLoopback := func(s *scene, port uint16) request {
		return s.to(netip.AddrPortFrom(s.family.loopback.Unmap(), port))
	}
	at := netip.AddrPortFrom

	holdForSelection(t,
		selection{"node port of this host: translated", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantBackend(s.to(at(node(s, lbmap.IdentityHost, 0), nodePort)), 1)
			s.wantBackend(s.to(at(node(s, lbmap.IdentityHost, 0), nodePort)).byPod(), 1)
		}},
		selection{"node port of another node of the cluster: translated", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			for _, identity := range remoteNodes {
				s.wantBackend(s.to(at(node(s, identity, 0), nodePort)), 1)
			}
		}},
		selection{"node port of a node of another cluster: left alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			for _, identity := range remoteNodes {
				s.wantUntranslated(s.to(at(node(s, identity, lbmap.IPCacheRemoteCluster), nodePort)))
			}
		}},
		selection{"node port of what is local to a node, but is none: left alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			for _, identity := range []uint32{0, 2, 3, 4, 5, 8, 256, 0x01ffffff, 0x03000000, 0x00000200, 0x80000006} {
				s.wantUntranslated(s.to(at(node(s, identity, 0), nodePort)))
			}
		}},
		selection{"node port of an address that is no node's: left alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantUntranslated(s.to(at(s.family.service(0xbeee).Addr(), nodePort)))
			s.wantUntranslated(s.to(at(node(s, 2, 0), nodePort)))
		}},
		selection{"node port on loopback, on the host: translated", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantBackend(onLoopback(s, nodePort), 1)
		}},
		selection{"node port on loopback, elsewhere: left alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantUntranslated(onLoopback(s, nodePort).byPod())
		}},
		selection{"all of 127.0.0.0/8 is loopback, and of IPv6 ::1 alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			inside := []string{"127.0.0.1", "127.255.255.255"}
			outside := []string{"126.255.255.255", "128.0.0.1"}
			if s.family.services.Is6() {
				inside = []string{"::1"}
				outside = []string{"::2", "::1:0:1", "1::1", "::1:0:0:1"}
			}
			for _, a := range inside {
				s.wantBackend(s.to(at(netip.MustParseAddr(a), nodePort)), 1)
			}
			for _, a := range outside {
				s.wantUntranslated(s.to(at(netip.MustParseAddr(a), nodePort)))
			}
		}},
		selection{"node port range: ports at its ends are in it", nil, func(s *scene) {
			for _, port := range []uint16{29999, 30000, 32767, 32768} {
				wildcard(s, port, lbmap.FlagNodePort)
			}
			s.wantUntranslated(onLoopback(s, 29999))
			s.wantBackend(onLoopback(s, 30000), 1)
			s.wantBackend(onLoopback(s, 32767), 1)
			s.wantUntranslated(onLoopback(s, 32768))
		}},
		selection{
			"node port range: as configured",
			map[string]any{"nodeport_min": uint16(500), "nodeport_max": uint16(501)},
			func(s *scene) {
				for _, port := range []uint16{499, 500, 501, 502, nodePort} {
					wildcard(s, port, lbmap.FlagNodePort)
				}
				s.wantUntranslated(onLoopback(s, 499))
				s.wantBackend(onLoopback(s, 500), 1)
				s.wantBackend(onLoopback(s, 501), 1)
				s.wantUntranslated(onLoopback(s, 502))
				s.wantUntranslated(onLoopback(s, nodePort))
			},
		},
		selection{"a port in the range whose service is no node port: left alone", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagHostPort)
			s.wantUntranslated(onLoopback(s, nodePort))
		}},
		selection{"node ports off: left alone", off("nodeport"), func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			wildcard(s, port, lbmap.FlagHostPort)
			s.wantUntranslated(onLoopback(s, nodePort))
			s.wantUntranslated(onLoopback(s, port))
		}},
		selection{"the service of the address itself comes first", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			a := at(node(s, lbmap.IdentityHost, 0), nodePort)
			s.put(service{frontend: a, backends: []int{2}})
			s.wantBackend(s.to(a), 2)
		}},
		selection{"host port of this host: translated", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort)
			s.wantBackend(s.to(at(node(s, lbmap.IdentityHost, 0), port)), 1)
		}},
		selection{"host port of another node: left alone", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort)
			s.wantUntranslated(s.to(at(node(s, lbmap.IdentityRemoteNode, 0), port)))
		}},
		selection{"host port on loopback, on the host: translated", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort)
			s.wantBackend(onLoopback(s, port), 1)
		}},
		selection{"host port on loopback, elsewhere: left alone", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort)
			s.wantUntranslated(onLoopback(s, port).byPod())
		}},
		selection{"host port of loopback only, on loopback: translated", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort|lbmap.FlagLoopback)
			s.wantBackend(onLoopback(s, port), 1)
		}},
		selection{"host port of loopback only, on another address of the host: left alone", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagHostPort|lbmap.FlagLoopback)
			s.wantUntranslated(s.to(at(node(s, lbmap.IdentityHost, 0), port)))
		}},
		selection{"a port outside the range whose service is no host port: left alone", nil, func(s *scene) {
			wildcard(s, port, lbmap.FlagNodePort)
			s.wantUntranslated(onLoopback(s, port))
		}},
		selection{"the wildcard service is that of the protocol, or of any", nil, func(s *scene) {
			svc := service{
				frontend: at(s.unspecified(), nodePort), protocol: lbmap.ProtocolTCP,
				flags: lbmap.FlagNodePort, backends: []int{1},
			}
			s.put(svc)
			s.wantBackend(onLoopback(s, nodePort).over(lbmap.ProtocolTCP), 1)
			s.wantUntranslated(onLoopback(s, nodePort).over(lbmap.ProtocolUDP))
			svc.protocol, svc.backends = lbmap.ProtocolAny, []int{2}
			s.put(svc)
			s.wantBackend(onLoopback(s, nodePort).over(lbmap.ProtocolTCP), 1)
			s.wantBackend(onLoopback(s, nodePort).over(lbmap.ProtocolUDP), 2)
		}},
		selection{"the host's own namespace is the configured one", map[string]any{
			"host_netns_cookie": uint64(otherNetns),
		}, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantUntranslated(onLoopback(s, nodePort))
			s.wantBackend(onLoopback(s, nodePort).byPod(), 1)
		}},
	)
}
