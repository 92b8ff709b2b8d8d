// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"testing"

	"github.com/revsk/revsk/lbmap"
)

// found is what service_lookup returns of a service, and the key that it leaves.
type found struct {
	key    lbmap.ServiceKey
	revNat uint16
	count  uint16
}

func (s *scene) lookup(r request) (f found, ok bool) {
	s.Helper()
	out := s.h.run(s.T, "service_lookup", s.requestInput(r))
	return found{
		key: lbmap.ServiceKey{
			AddrPort: addrPort(out.Address.Addr.Bytes, out.Address.Port),
			Protocol: lbmap.Protocol(out.Protocol),
			Scope:    lbmap.Scope(out.Scope),
		},
		revNat: net16(out.Service.RevNatIndex),
		count:  out.Service.Count,
	}, out.Result != 0
}

func (s *scene) wantFound(r request, want found) {
	s.Helper()
	if got, ok := s.lookup(r); !ok || got != want {
		s.Errorf("lookup of %v: %v %+v, want %+v", r, ok, got, want)
	}
}

// The slots of a service are found by the key under which the service was found.
func TestServiceLookupLeavesTheKey(t *testing.T) {
	const tcp, udp = lbmap.ProtocolTCP, lbmap.ProtocolUDP
	holdForSelection(t,
		selection{"none", nil, func(s *scene) {
			if got, ok := s.lookup(s.toService1()); ok {
				s.Errorf("found %+v", got)
			}
		}},
		selection{"of the protocol", nil, func(s *scene) {
			s.put(service{revNat: 5})
			s.put(service{protocol: udp, revNat: 6, backends: []int{1, 2, 3}})
			s.wantFound(s.toService1(), found{
				key:    lbmap.ServiceKey{AddrPort: s.family.service(1), Protocol: udp},
				revNat: 6, count: 3,
			})
		}},
		selection{"of any protocol", nil, func(s *scene) {
			s.put(service{revNat: 5})
			s.put(service{protocol: tcp, revNat: 6})
			s.wantFound(s.toService1(), found{
				key: lbmap.ServiceKey{AddrPort: s.family.service(1)}, revNat: 5,
			})
		}},
		selection{"in the internal scope", nil, func(s *scene) {
			s.put(service{protocol: udp, revNat: 5, flags: lbmap.FlagTwoScopes})
			s.put(service{protocol: udp, revNat: 6, scope: lbmap.ScopeInternal})
			s.wantFound(s.toService1(), found{
				key: lbmap.ServiceKey{
					AddrPort: s.family.service(1), Protocol: udp, Scope: lbmap.ScopeInternal,
				},
				revNat: 6,
			})
		}},
		selection{"in the internal scope, for any protocol if there is none for this one", nil, func(s *scene) {
			s.put(service{protocol: udp, revNat: 5, flags: lbmap.FlagTwoScopes})
			s.put(service{revNat: 6, scope: lbmap.ScopeInternal})
			s.wantFound(s.toService1(), found{
				key:    lbmap.ServiceKey{AddrPort: s.family.service(1), Scope: lbmap.ScopeInternal},
				revNat: 6,
			})
		}},
		selection{"in the internal scope, for the protocol though the external one is for any", nil, func(s *scene) {
			s.put(service{revNat: 5, flags: lbmap.FlagTwoScopes})
			s.put(service{protocol: udp, revNat: 6, scope: lbmap.ScopeInternal})
			s.put(service{revNat: 7, scope: lbmap.ScopeInternal})
			s.wantFound(s.toService1(), found{
				key: lbmap.ServiceKey{
					AddrPort: s.family.service(1), Protocol: udp, Scope: lbmap.ScopeInternal,
				},
				revNat: 6,
			})
		}},
		selection{"of the unspecified address", nil, func(s *scene) {
			a := netip.AddrPortFrom(s.family.service(1).Addr(), 30080)
			wildcard := netip.AddrPortFrom(s.unspecified(), a.Port())
			s.identify(a.Addr(), lbmap.IdentityHost, 0)
			s.put(service{frontend: wildcard, protocol: udp, revNat: 6, flags: lbmap.FlagNodePort})
			s.wantFound(s.to(a), found{
				key: lbmap.ServiceKey{AddrPort: wildcard, Protocol: udp}, revNat: 6,
			})
		}},
		selection{"of the unspecified address, any protocol, in the internal scope", nil, func(s *scene) {
			a := netip.AddrPortFrom(s.family.service(1).Addr(), 30080)
			wildcard := netip.AddrPortFrom(s.unspecified(), a.Port())
			s.identify(a.Addr(), lbmap.IdentityHost, 0)
			svc := service{frontend: wildcard, revNat: 5, flags: lbmap.FlagNodePort | lbmap.FlagTwoScopes}
			s.put(svc)
			svc.scope, svc.revNat = lbmap.ScopeInternal, 6
			s.put(svc)
			s.wantFound(s.to(a), found{
				key:    lbmap.ServiceKey{AddrPort: wildcard, Scope: lbmap.ScopeInternal},
				revNat: 6,
			})
		}},
	)
}

func (s *scene) wantCurrent(t tuple, want bool) {
	s.Helper()
	s.wantCurrentFor(hostNetns, lbmap.Protocol(s.protocol()), t, want)
}

func (s *scene) wantCurrentFor(netns uint64, protocol lbmap.Protocol, t tuple, want bool) {
	s.Helper()
	in := s.input()
	in.Protocol = uint8(protocol)
	in.NetnsCookie = netns
	in.Tuple = t.wire()
	if got := s.h.run(s.T, "service_stands", in).Result != 0; got != want {
		s.Errorf("%v is current: %v, want %v", t, got, want)
	}
}

func TestTupleIsCurrent(t *testing.T) {
	const nodePort = 30080
	holdForSelection(t,
		selection{"while its service has backends", nil, func(s *scene) {
			s.put(service{backends: []int{1}})
			s.wantCurrent(s.tuple(1, 1), true)
		}},
		selection{"though its backend is no longer one of the service's", nil, func(s *scene) {
			s.put(service{backends: []int{2}})
			s.wantCurrent(s.tuple(1, 1), true)
		}},
		selection{"not if the service is gone", nil, func(s *scene) {
			s.wantCurrent(s.tuple(1, 1), false)
		}},
		selection{"not if only a service of another address or port is there", nil, func(s *scene) {
			for _, other := range neighbours(s.family.service(1)) {
				s.put(service{frontend: other, backends: []int{1}})
			}
			s.wantCurrent(s.tuple(1, 1), false)
		}},
		selection{"not if the index is another service's by now", nil, func(s *scene) {
			s.put(service{revNat: 0x0100, backends: []int{1}})
			s.wantCurrent(s.tuple(1, 1), false)
		}},
		selection{"not if the service has no backends", nil, func(s *scene) {
			s.put(service{quarantined: []int{1}})
			s.wantCurrent(s.tuple(1, 1), false)
		}},
		selection{"if the service has an L7 proxy instead of backends", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, word: proxyPort()})
			s.wantCurrent(s.tuple(1, 1), true)
		}},
		selection{"not if L7 is off and the service has no backends", off("l7"), func(s *scene) {
			s.put(service{flags: lbmap.FlagL7LoadBalancer, word: proxyPort()})
			s.wantCurrent(s.tuple(1, 1), false)
		}},
		selection{"by the service of its protocol", nil, func(s *scene) {
			s.put(service{protocol: lbmap.ProtocolTCP, backends: []int{1}})
			t := s.tuple(1, 1)
			s.wantCurrent(t, false)
			s.wantCurrentFor(hostNetns, lbmap.ProtocolTCP, t, true)
		}},
		selection{"by the service of the internal scope", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagTwoScopes, backends: []int{1}})
			s.put(service{scope: lbmap.ScopeInternal})
			s.wantCurrent(s.tuple(1, 1), false)
			s.put(service{scope: lbmap.ScopeInternal, backends: []int{1}})
			s.wantCurrent(s.tuple(1, 1), true)
		}},
		selection{"by a node port, while the address is a node's", nil, func(s *scene) {
			t := s.tuple(1, 1)
			t.service = netip.AddrPortFrom(t.service.Addr(), nodePort)
			wildcard := netip.AddrPortFrom(s.unspecified(), nodePort)
			s.put(service{frontend: wildcard, flags: lbmap.FlagNodePort, backends: []int{1}})
			s.wantCurrent(t, false)
			for _, identity := range remoteNodes {
				s.identify(t.service.Addr(), identity, 0)
				s.wantCurrent(t, true)
			}
		}},
		selection{"by a node port on loopback, on the host", nil, func(s *scene) {
			t := s.tuple(1, 1)
			t.service = netip.AddrPortFrom(s.family.loopback.Unmap(), nodePort)
			wildcard := netip.AddrPortFrom(s.unspecified(), nodePort)
			s.put(service{frontend: wildcard, flags: lbmap.FlagNodePort, backends: []int{1}})
			s.wantCurrentFor(hostNetns, lbmap.ProtocolUDP, t, true)
			s.wantCurrentFor(otherNetns, lbmap.ProtocolUDP, t, false)
		}},
	)
}
