// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
)

// service is an entry of a service map with its slots and backends.
type service struct {
	frontend    netip.AddrPort // zero: service 1
	protocol    lbmap.Protocol
	scope       lbmap.Scope
	flags       lbmap.ServiceFlags
	revNat      uint16 // 0: 1
	word        uint32 // timeout or proxy port
	backends    []int  // numbers
	quarantined []int
	countMore   int  // backends that slot 0 counts and that have no slot
	noBackends  bool // the backends of the slots do not exist
}

// put creates a service.
func (s *scene) put(svc service) {
	s.Helper()
	if !svc.frontend.IsValid() {
		svc.frontend = s.family.service(1)
	}
	if svc.revNat == 0 {
		svc.revNat = 1
	}
	if s.byProtocol && svc.protocol == lbmap.ProtocolAny {
		for _, svc.protocol = range []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDPLite} {
			s.put(svc)
		}
		svc.protocol = lbmap.ProtocolUDP
	}
	m := s.h.servicesFor(svc.frontend.Addr())
	key := lbmap.ServiceKey{AddrPort: svc.frontend, Protocol: svc.protocol, Scope: svc.scope}
	must(s.T, m.Put(key, lbmap.ServiceValue{
		Union:  svc.word,
		Count:  uint16(len(svc.backends) + svc.countMore),
		QCount: uint16(len(svc.quarantined)),
		RevNat: svc.revNat,
		Flags:  svc.flags,
	}))
	for i, n := range append(svc.backends, svc.quarantined...) {
		key.Slot = uint16(i + 1)
		value := lbmap.ServiceValue{RevNat: svc.revNat}
		value.SetBackendID(uint32(n))
		if i >= len(svc.backends) {
			value.Flags = lbmap.FlagQuarantined
		}
		must(s.T, m.Put(key, value))
		if !svc.noBackends {
			s.putBackend(n, s.family.backend(n))
		}
	}
}

func (s *scene) backends() *ebpf.Map {
	return s.h.m(familyMap(s.family.backends, harnessMapCiliumLb4BackendsV3, harnessMapCiliumLb6BackendsV3))
}

func (s *scene) putBackend(n int, a netip.AddrPort) {
	s.Helper()
	must(s.T, s.backends().Put(uint32(n), lbmap.BackendValue{AddrPort: a}))
}

// identify gives an address an identity in the ipcache.
func (s *scene) identify(a netip.Addr, identity uint32, flags lbmap.IPCacheFlags) {
	s.Helper()
	must(s.T, s.h.m(harnessMapCiliumIpcacheV2).Put(
		lbmap.IPCacheKey{Prefix: netip.PrefixFrom(a, a.BitLen())},
		lbmap.IPCacheValue{Identity: identity, Flags: flags},
	))
}

// skip makes a network namespace bypass a local-redirect service.
func (s *scene) skip(netns uint64, a netip.AddrPort) {
	s.Helper()
	name := familyMap(a.Addr(), harnessMapCiliumSkipLb4, harnessMapCiliumSkipLb6)
	must(s.T, s.h.m(name).Put(lbmap.SkipLBKey{NetnsCookie: netns, AddrPort: a}, uint8(0)))
}

func (s *scene) affinities() *ebpf.Map {
	return s.h.m(familyMap(s.family.services, harnessMapCiliumLb4Affinity, harnessMapCiliumLb6Affinity))
}

func (s *scene) affinityKey(netns uint64) lbmap.AffinityKey {
	return lbmap.AffinityKey{NetnsCookie: netns, IPv6: s.family.services.Is6(), RevNat: 1}
}

// stick makes a network namespace have used a backend of service 1 some time ago.
func (s *scene) stick(netns uint64, backend int, ago time.Duration) {
	s.Helper()
	// Soon after boot this wraps around, as the sum with the timeout does.
	must(s.T, s.affinities().Put(s.affinityKey(netns), lbmap.AffinityValue{
		LastUsed:  monotonicSeconds(s.T) - uint64(ago/time.Second),
		BackendID: uint32(backend),
	}))
}

// affinity returns the entry of a network namespace and service 1.
func (s *scene) affinity(netns uint64) (v lbmap.AffinityValue, found bool) {
	s.Helper()
	key, err := s.affinityKey(netns).MarshalBinary()
	must(s.T, err)
	// By its bytes: what the programs write must have no padding of their own.
	all := rawEntries(s.T, s.affinities())
	value, found := all[string(key)]
	if !found {
		return v, false
	}
	must(s.T, v.UnmarshalBinary([]byte(value)))
	return v, true
}

// wantAffinity checks that a network namespace has just used a backend.
func (s *scene) wantAffinity(netns uint64, backend int) {
	s.Helper()
	now := monotonicSeconds(s.T)
	v, found := s.affinity(netns)
	if !found {
		s.Errorf("there is no affinity of the network namespace %d", netns)
		return
	}
	if v.BackendID != uint32(backend) {
		s.Errorf("affinity to backend %d, want %d", v.BackendID, backend)
	}
	if v.LastUsed > now || v.LastUsed+30 < now {
		s.Errorf("affinity was last used at %d s, want %d s", v.LastUsed, now)
	}
}

func (s *scene) wantNoAffinity(netns uint64) {
	s.Helper()
	if v, found := s.affinity(netns); found {
		s.Errorf("there is the affinity %+v of the network namespace %d", v, netns)
	}
}

// match makes a backend one that clients of service 1 may keep.
func (s *scene) match(backends ...int) {
	s.Helper()
	for _, n := range backends {
		key := lbmap.AffinityMatchKey{BackendID: uint32(n), RevNat: 1}
		must(s.T, s.h.m(harnessMapCiliumLbAffinityMatch).Put(key, uint8(0)))
	}
}

// monotonicSeconds is the clock of affinity entries.
func monotonicSeconds(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Sec)
}

// jiffies are the ticks that the kernel has counted.
func jiffies(t *testing.T) (n uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/timer_list")
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "\njiffies: ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("/proc/timer_list: %v", err)
	}
	return n
}

// request is what an application asks for.
type request struct {
	dst      netip.AddrPort
	protocol lbmap.Protocol
	netns    uint64
	cookie   uint64
}

func (r request) String() string {
	return fmt.Sprintf("%v/%v (namespace %d, cookie %d)", r.dst, r.protocol, r.netns, r.cookie)
}

// toService1 is the request of a datagram socket in the host's network namespace.
func (s *scene) toService1() request { return s.to(s.family.service(1)) }

func (s *scene) to(dst netip.AddrPort) request {
	return request{dst: dst, protocol: unix.IPPROTO_UDP, netns: hostNetns, cookie: 4}
}

func (r request) over(p lbmap.Protocol) request {
	r.protocol = p
	return r
}

// byPod makes r a request from another network namespace than the host's.
func (r request) byPod() request {
	r.netns = otherNetns
	return r
}

func (r request) by(cookie uint64) request {
	r.cookie = cookie
	return r
}

func (s *scene) requestInput(r request) harnessHarnessInput {
	in := s.input()
	in.Address = wireEndpoint(r.dst)
	in.Protocol = uint8(r.protocol)
	in.NetnsCookie = r.netns
	in.SocketCookie = r.cookie
	return in
}

// selects runs lb_select and checks that it fills the tuple in exactly if it
// translates.
func (s *scene) selects(r request) (verdict int64, t tuple) {
	s.Helper()
	out := s.h.run(s.T, "lb_select", s.requestInput(r))
	t = fromWire(out.Tuple)
	if out.Result != translated {
		if out.Tuple != (harnessRevskTuple{}) {
			s.Errorf("verdict %d for %v, but there is a tuple: %v", out.Result, r.dst, t)
		}
		return out.Result, t
	}
	return out.Result, t
}

// What lb_select returns.
const (
	untranslated = 0
	translated   = 1
	unreachable  = -int64(unix.EHOSTUNREACH)
)

func (s *scene) wantVerdict(r request, want int64) {
	s.Helper()
	if got, t := s.selects(r); got != want {
		s.Errorf("verdict %d for %v, want %d (tuple: %v)", got, r, want, t)
	}
}

func (s *scene) wantUntranslated(r request) { s.Helper(); s.wantVerdict(r, untranslated) }
func (s *scene) wantUnreachable(r request)  { s.Helper(); s.wantVerdict(r, unreachable) }

// wantBackend checks that a request goes to a backend of service 1, and that the
// tuple records the address that was asked for.
func (s *scene) wantBackend(r request, backend int) {
	s.Helper()
	s.wantTuple(r, tuple{
		peer: s.family.backend(backend), service: r.dst, revNat: 1,
		backendID: uint32(backend),
	})
}

func (s *scene) wantTuple(r request, want tuple) {
	s.Helper()
	if got, t := s.selects(r); got != translated {
		s.Errorf("verdict %d for %v, want %v", got, r, want)
	} else if t != want {
		s.Errorf("%v goes to %v, want %v", r, t, want)
	}
}

// draws counts how often each backend is chosen in n requests.
func (s *scene) draws(r request, n int) map[int]int {
	s.Helper()
	drawn := make(map[int]int)
	for range n {
		verdict, t := s.selects(r)
		if verdict != translated {
			s.Fatalf("verdict %d for %v", verdict, r)
		}
		drawn[int(t.backendID)]++
	}
	return drawn
}

// unspecified is the address that node ports and host ports are services of.
func (s *scene) unspecified() netip.Addr {
	if s.family.services.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
