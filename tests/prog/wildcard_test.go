// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/lbmap"
)

// place is an address that a node may serve ports on.
type place struct {
	addr     netip.Addr
	identity uint32 // 0: the ipcache does not know it
	flags    lbmap.IPCacheFlags
}

func (p place) isHost() bool { return p.identity == lbmap.IdentityHost }

func (p place) isNode() bool {
	remote := p.identity == lbmap.IdentityRemoteNode || p.identity == lbmap.IdentityAPIServerNode ||
		p.identity>>24 == lbmap.IdentityScopeRemoteNode>>24
	return p.isHost() || remote && p.flags&lbmap.IPCacheRemoteCluster == 0
}

// places are addresses of every kind, loopback included.
func (s *scene) places() []place {
	loopback := s.family.loopback.Unmap()
	all := []place{{addr: loopback}}
	identities := append([]uint32{0, lbmap.IdentityHost, 2, 8, 0x01000000, 0x03000000}, remoteNodes...)
	for i, identity := range identities {
		for _, flags := range []lbmap.IPCacheFlags{0, lbmap.IPCacheRemoteCluster} {
			all = append(all, place{s.family.service(0x1000 + i).Addr(), identity, flags})
		}
	}
	return append(all, place{addr: loopback, identity: lbmap.IdentityHost}, place{addr: loopback, identity: 2})
}

// wildcardServes is the rule: the service has to be one for this port, and the address one of a node that serves it.
// Neither is asked for first.
func wildcardServes(p place, port uint16, flags lbmap.ServiceFlags, r request) bool {
	ownLoopback := p.addr.IsLoopback() && r.netns == hostNetns
	if port >= 30000 && port <= 32767 {
		return flags&lbmap.FlagNodePort != 0 && (ownLoopback || p.isNode())
	}
	if flags&lbmap.FlagHostPort == 0 || flags&lbmap.FlagLoopback != 0 && !p.addr.IsLoopback() {
		return false
	}
	return ownLoopback || p.isHost()
}

// A service of the unspecified address serves exactly the addresses that the rule says, whichever of the two the
// programs look up first: every address, port, service and namespace with every other.
func TestWildcardServesByServiceAndAddress(t *testing.T) {
	variants := map[string]map[string]any{
		"default":              nil,
		"one protocol":         off("any_protocol"),
		"rest out of line":     on("imprecise_verifier"),
		"out of line, one too": {"imprecise_verifier": true, "any_protocol": false},
	}
	for name, constants := range variants {
		t.Run(name, func(t *testing.T) {
			h := load(t, options{programs: selectionPrograms, constants: constants})
			selection{play: func(s *scene) { s.wildcards() }}.hold(t, h)
		})
	}
}

func (s *scene) wildcards() {
	const udp = lbmap.ProtocolUDP
	none := lbmap.ServiceFlags(0)
	for _, port := range []uint16{29999, 30000, 32767, 32768} {
		frontend := netip.AddrPortFrom(s.unspecified(), port)
		for _, flags := range []lbmap.ServiceFlags{
			none, lbmap.FlagNodePort, lbmap.FlagHostPort, lbmap.FlagHostPort | lbmap.FlagLoopback,
			lbmap.FlagNodePort | lbmap.FlagHostPort, lbmap.FlagExternalIP | lbmap.FlagLoadBalancer,
		} {
			s.put(service{frontend: frontend, protocol: udp, flags: flags, backends: []int{1}})
			for _, p := range s.places() {
				if p.identity != 0 {
					s.identify(p.addr, p.identity, p.flags)
				}
				r := s.to(netip.AddrPortFrom(p.addr, port))
				for _, r := range []request{r, r.byPod()} {
					want := found{key: lbmap.ServiceKey{AddrPort: frontend, Protocol: udp}, revNat: 1, count: 1}
					got, ok := s.lookup(r)
					if serves := wildcardServes(p, port, flags, r); ok != serves || ok && got != want {
						s.Errorf("flags %#x, identity %#x %#x: lookup of %v: %v %+v, want %v", flags, p.identity, p.flags, r, ok, got, serves)
					}
				}
				s.forget(p.addr)
			}
		}
	}
}

// forget undoes identify.
func (s *scene) forget(a netip.Addr) {
	s.Helper()
	m := s.h.m(harnessMapCiliumIpcacheV2)
	key := lbmap.IPCacheKey{Prefix: netip.PrefixFrom(a, a.BitLen())}
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		s.Fatal(err)
	}
}
