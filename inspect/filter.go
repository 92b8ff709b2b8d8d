// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net/netip"
	"slices"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Filter says which sockets are wanted: those for which all of it is true. The zero value stands for all.
//
// All but Match is applied in the kernel before a socket is copied; on Linux before 5.12 what is asked of tuples is not.
type Filter struct {
	// Protocol is that of the sockets. [lbmap.ProtocolAny] stands for every one.
	Protocol lbmap.Protocol
	// NetNS is the inode of their network namespace. 0 stands for every one.
	NetNS uint64
	// Cookie is that of one socket. 0 stands for every one.
	Cookie uint64
	// Service, Backends and Connected are asked of tuples: a socket is wanted if one tuple is right in all of
	// them.
	//
	// Service is what the application used.
	Service ServiceFilter
	// Backends are the peers. nil stands for every one.
	Backends BackendSet
	// Connected is for the tuple by which the socket is connected, see [Socket.Connection].
	Connected bool
	// Match says of a socket without owners whether it is wanted: owners are looked up for those only.
	// nil stands for every one. What it is given is the caller's from then on.
	Match func(*Socket) bool
}

// ServiceFilter tells the connections of a service from others.
type ServiceFilter struct {
	// AddrPort is what applications connected to. The address 0.0.0.0 or [::], as of a NodePort service,
	// stands for every address of the family. The zero AddrPort stands for every service.
	AddrPort netip.AddrPort
	// Protocol is that of the sockets. [lbmap.ProtocolAny] stands for every one.
	Protocol lbmap.Protocol
	// Except are addresses that 0.0.0.0 or [::] does not stand for: they are those of other services.
	Except []netip.AddrPort
}

// Matches says whether a socket of this protocol that is connected to this service is meant.
func (f *ServiceFilter) Matches(service netip.AddrPort, protocol lbmap.Protocol) bool {
	if !f.AddrPort.IsValid() {
		return true
	}
	if f.Protocol != lbmap.ProtocolAny && f.Protocol != protocol {
		return false
	}
	if !f.AddrPort.Addr().IsUnspecified() {
		return f.AddrPort == service
	}
	return f.AddrPort.Port() == service.Port() && f.AddrPort.Addr().Is4() == service.Addr().Is4() &&
		!slices.Contains(f.Except, service)
}

// BackendSet is a set of backends.
type BackendSet map[Backend]struct{}

// NewBackendSet makes a set, not nil even if it is empty.
func NewBackendSet(backends ...Backend) BackendSet {
	set := make(BackendSet, len(backends))
	for _, b := range backends {
		set[b] = struct{}{}
	}
	return set
}

// Has says whether a peer of a socket of this protocol is in the set, with that protocol or with
// [lbmap.ProtocolAny].
func (s BackendSet) Has(peer netip.AddrPort, protocol lbmap.Protocol) bool {
	_, ok := s[Backend{peer, protocol}]
	if !ok {
		_, ok = s[Backend{peer, lbmap.ProtocolAny}]
	}
	return ok
}

// WantsTuple says whether a tuple of a socket is right in Service, Backends and Connected. The role is that of
// [Socket.Tuples].
func (f *Filter) WantsTuple(s *Socket, role Role, t *revnat.Tuple) bool {
	return (!f.Connected || role == RoleConnected) && f.Service.Matches(t.Service, s.Protocol) &&
		(f.Backends == nil || f.Backends.Has(t.Peer, s.Protocol))
}

func (f *Filter) asksOfTuples() bool {
	return f.Connected || f.Service.AddrPort.IsValid() || f.Backends != nil
}

// asks says whether it depends on more than the kernel decides if a socket is wanted.
func (f *Filter) asks() bool { return f.asksOfTuples() || f.Match != nil }

// wants says of a socket without owners what is true of the whole filter.
func (f *Filter) wants(s *Socket) bool {
	if f.asksOfTuples() {
		found := false
		for role, t := range s.Tuples() {
			found = found || f.WantsTuple(s, role, t)
		}
		if !found {
			return false
		}
	}
	if f.Match == nil {
		return true
	}
	own := *s // only what Match is given takes memory of its own
	return f.Match(&own)
}

// want tells the programs what is wanted. What they let pass may be more, see bpf/iter/wanted.h.
func (p *dumpPrograms) want(f *Filter) error {
	var frontend programs.DumpRevskWantedService
	if service := f.Service.AddrPort; service.IsValid() {
		frontend.Addr.Bytes, frontend.Port = service.Addr().As16(), byteorder.Net16(service.Port())
		frontend.How = uint8(programs.DumpRevskWantedREVSK_WANTED_THESE)
		if service.Addr().IsUnspecified() {
			frontend.How = uint8(programs.DumpRevskWantedREVSK_WANTED_ALIKE)
		}
	}
	how, keys := programs.DumpRevskWantedREVSK_WANTED_ALL, []programs.DumpRevskWantedBackend(nil)
	m := p.Maps[programs.DumpMapRevskWantedBackends]
	backends := f.Backends
	if m == nil || len(backends) > int(m.MaxEntries()) {
		backends = nil
	}
	if backends != nil {
		how = programs.DumpRevskWantedREVSK_WANTED_THESE
	}
	for b := range backends {
		key := programs.DumpRevskWantedBackend{Port: byteorder.Net16(b.AddrPort.Port()), Protocol: uint16(b.Protocol)}
		key.Addr.Bytes = b.AddrPort.Addr().As16()
		keys = append(keys, key)
		if b.Protocol == lbmap.ProtocolAny {
			how = programs.DumpRevskWantedREVSK_WANTED_ALIKE
		}
	}
	if m != nil {
		err := batch.Delete(m, p.backends)
		if err == nil {
			p.backends = keys
			err = batch.Write(m, keys, make([]uint8, len(keys)))
		}
		if err != nil {
			return fmt.Errorf("telling the programs which backends are wanted: %w", err)
		}
	}
	protocol := f.Protocol
	if protocol == lbmap.ProtocolAny {
		protocol = f.Service.Protocol
	}
	return p.set(map[string]any{
		programs.DumpVarRevskWantedCookie:      f.Cookie,
		programs.DumpVarRevskWantedNetns:       uint32(f.NetNS),
		programs.DumpVarRevskWantedProtocol:    uint16(protocol),
		programs.DumpVarRevskWantedConnected:   f.Connected,
		programs.DumpVarRevskWantedFrontend:    frontend,
		programs.DumpVarRevskWantedBackendsHow: uint8(how),
	})
}
