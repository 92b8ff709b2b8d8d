// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/revsk/revsk/lbmap"
)

func (s *scene) wantHijack(r request, want bool) {
	s.Helper()
	if got := s.h.run(s.T, "bind_would_hijack", s.requestInput(r)).Result != 0; got != want {
		s.Errorf("a bind to %v would hijack a service: %v, want %v", r, got, want)
	}
}

// The flags of services that are reached from the outside.
var toTheOutside = []lbmap.ServiceFlags{lbmap.FlagNodePort, lbmap.FlagExternalIP, lbmap.FlagLoadBalancer}

// A socket on the host must not be bound to what the node serves to the outside.
func TestBindThatWouldHijack(t *testing.T) {
	const nodePort = 30080
	wildcard := func(s *scene, port uint16, flags lbmap.ServiceFlags) {
		s.put(service{frontend: netip.AddrPortFrom(s.unspecified(), port), flags: flags, backends: []int{1}})
	}
	onLoopback := func(s *scene, port uint16) request {
		return s.to(netip.AddrPortFrom(s.family.loopback.Unmap(), port))
	}
	holdForSelection(t,
		selection{"the address of no service: no", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagLoadBalancer, backends: []int{1}})
			for _, other := range neighbours(s.family.service(1)) {
				s.wantHijack(s.to(other), false)
			}
		}},
		selection{"the address of a service within the cluster: no", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagHostPort | lbmap.FlagAffinity | lbmap.FlagRoutable, backends: []int{1}})
			s.wantHijack(s.toService1(), false)
		}},
		selection{"the address of a service to the outside: yes", nil, func(s *scene) {
			for _, flags := range toTheOutside {
				s.put(service{flags: flags, backends: []int{1}})
				s.wantHijack(s.toService1(), true)
			}
		}},
		selection{"the address of a service to the outside, without backends: yes", nil, func(s *scene) {
			s.put(service{flags: lbmap.FlagLoadBalancer})
			s.wantHijack(s.toService1(), true)
		}},
		selection{"the address of an L7 service: no", nil, func(s *scene) {
			for _, flags := range toTheOutside {
				s.put(service{flags: flags | lbmap.FlagL7LoadBalancer, word: proxyPort()})
				s.wantHijack(s.toService1(), false)
				s.put(service{flags: flags | lbmap.FlagL7LoadBalancer})
				s.wantHijack(s.toService1(), false)
				s.put(service{flags: flags | lbmap.FlagL7Delegate, backends: []int{1}})
				s.wantHijack(s.toService1(), false)
			}
		}},
		selection{"a service of another protocol: no", nil, func(s *scene) {
			s.put(service{protocol: lbmap.ProtocolTCP, flags: lbmap.FlagLoadBalancer, backends: []int{1}})
			s.wantHijack(s.toService1(), false)
			s.wantHijack(s.toService1().over(lbmap.ProtocolTCP), true)
		}},
		selection{"a node port of every address: yes", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantHijack(s.to(netip.AddrPortFrom(s.unspecified(), nodePort)), true)
		}},
		selection{"a node port on loopback: yes", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantHijack(onLoopback(s, nodePort), true)
		}},
		selection{"a node port on an address of this host: yes", nil, func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			local := netip.AddrPortFrom(s.family.service(1).Addr(), nodePort)
			s.wantHijack(s.to(local), false)
			s.identify(local.Addr(), lbmap.IdentityRemoteNode, 0)
			s.wantHijack(s.to(local), false)
			s.identify(local.Addr(), lbmap.IdentityHost, 0)
			s.wantHijack(s.to(local), true)
		}},
		selection{"a port outside the range: no", nil, func(s *scene) {
			for _, port := range []uint16{29999, 30000, 32767, 32768} {
				wildcard(s, port, lbmap.FlagNodePort)
			}
			s.wantHijack(onLoopback(s, 29999), false)
			s.wantHijack(onLoopback(s, 30000), true)
			s.wantHijack(onLoopback(s, 32767), true)
			s.wantHijack(onLoopback(s, 32768), false)
		}},
		selection{"a node port, node ports off: no", off("nodeport"), func(s *scene) {
			wildcard(s, nodePort, lbmap.FlagNodePort)
			s.wantHijack(onLoopback(s, nodePort), false)
		}},
	)
}

// What a health checker's socket was to be bound to is kept by the socket's cookie.
func TestHealthBind(t *testing.T) {
	holdForAll(t, rule{"remembers address, port and protocol", func(s *scene) {
		local := s.family.service(1)
		if err := errno(s.withAddress("health_bind", local)); err != 0 {
			s.Fatalf("health_bind: %v", err)
		}
		// The layout of a backend, written out.
		value := append(local.Addr().AsSlice(), 0, 80, s.protocol(), 0, 0, 0, 0, 0)
		name := familyMap(local.Addr(), harnessMapCiliumLb4Health, harnessMapCiliumLb6Health)
		got := rawEntries(s.T, s.h.m(name))
		key := binary.NativeEndian.AppendUint64(nil, s.cookie)
		if len(got) != 1 || got[string(key)] != string(value) {
			s.Errorf("%s holds %q, want %q for %q", name, got, value, key)
		}
	}})
}
