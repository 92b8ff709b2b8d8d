// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Protocol is an IP protocol number, as in the keys of cilium_lb{4,6}_services_v2
// and in the values of cilium_lb{4,6}_backends_v3.
type Protocol uint8

// The protocols of services. ProtocolAny is a number of its own in the maps and
// matches only itself.
const (
	ProtocolAny     Protocol = 0
	ProtocolTCP     Protocol = unix.IPPROTO_TCP
	ProtocolUDP     Protocol = unix.IPPROTO_UDP
	ProtocolUDPLite Protocol = unix.IPPROTO_UDPLITE
)

// String returns "any", "tcp", "udp" or "udplite", and the number of any other
// protocol.
func (p Protocol) String() string {
	switch p {
	case ProtocolAny:
		return "any"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolUDPLite:
		return "udplite"
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol reads what [Protocol.String] returns. Names may be in any case;
// a number from 0 to 255 is accepted for every protocol.
//
// Returns an error wrapping [ErrSyntax].
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range []Protocol{ProtocolAny, ProtocolTCP, ProtocolUDP, ProtocolUDPLite} {
		if strings.EqualFold(s, p.String()) {
			return p, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: expected tcp, udp, udplite, any or a number: %w", s, ErrSyntax)
	}
	return Protocol(n), nil
}

// MarshalText returns the same as [Protocol.String].
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText does the same as [ParseProtocol].
func (p *Protocol) UnmarshalText(text []byte) error {
	v, err := ParseProtocol(string(text))
	if err == nil {
		*p = v
	}
	return err
}

// Scope says for whose connections a service entry is, as in the keys of
// cilium_lb{4,6}_services_v2.
type Scope uint8

// A service has one entry, in the external scope, unless it has
// [FlagTwoScopes]: then connections from within the cluster use the entry in
// the internal scope.
const (
	ScopeExternal Scope = 0
	ScopeInternal Scope = 1
)

// String returns "external" or "internal", and the number of any other scope.
func (s Scope) String() string {
	switch s {
	case ScopeExternal:
		return "external"
	case ScopeInternal:
		return "internal"
	}
	return strconv.Itoa(int(s))
}

// ParseScope reads what [Scope.String] returns. Names may be in any case.
//
// Returns an error wrapping [ErrSyntax].
func ParseScope(s string) (Scope, error) {
	for _, v := range []Scope{ScopeExternal, ScopeInternal} {
		if strings.EqualFold(s, v.String()) {
			return v, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("scope %q: expected external or internal: %w", s, ErrSyntax)
	}
	return Scope(n), nil
}

// MarshalText returns the same as [Scope.String].
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText does the same as [ParseScope].
func (s *Scope) UnmarshalText(text []byte) error {
	v, err := ParseScope(string(text))
	if err == nil {
		*s = v
	}
	return err
}
