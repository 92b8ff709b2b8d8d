// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Frontend is the identity of a service: the address that clients use.
type Frontend struct {
	// AddrPort has the zero address for a node port or host port on every
	// address of the node.
	AddrPort netip.AddrPort
	Protocol Protocol
	Scope    Scope
}

// String returns ADDR:PORT/PROTO, such as 10.0.0.1:80/tcp or
// [fd00::1]:53/udp, with the scope as another part unless it is the external
// one: 10.0.0.1:80/tcp/internal.
func (f Frontend) String() string {
	s := f.AddrPort.String() + "/" + f.Protocol.String()
	if f.Scope != ScopeExternal {
		s += "/" + f.Scope.String()
	}
	return s
}

// ParseFrontend reads what [Frontend.String] returns. A v4-mapped IPv6 address
// is refused rather than taken as IPv4, because a socket may use either form
// while a service has only one.
//
// Returns an error of one line wrapping [ErrSyntax].
func ParseFrontend(s string) (Frontend, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return Frontend{}, frontendError(s, "")
	}
	var f Frontend
	var err error
	if f.AddrPort, err = netip.ParseAddrPort(parts[0]); err != nil {
		return Frontend{}, frontendError(s, "")
	}
	if a := f.AddrPort.Addr(); a.Is4In6() {
		return Frontend{}, frontendError(s, fmt.Sprintf("v4-mapped address, write it as %v; ", a.Unmap()))
	} else if a.Zone() != "" {
		return Frontend{}, frontendError(s, "address with a zone; ")
	}
	if f.Protocol, err = ParseProtocol(parts[1]); err != nil {
		return Frontend{}, frontendError(s, "unknown protocol; ")
	}
	if len(parts) == 3 {
		if f.Scope, err = ParseScope(parts[2]); err != nil {
			return Frontend{}, frontendError(s, "unknown scope; ")
		}
	}
	return f, nil
}

// frontendError says which form is expected, after the reason where there is
// more to say than that.
func frontendError(s, reason string) error {
	return fmt.Errorf("service %q: %sexpected ADDR:PORT/PROTO, such as 10.0.0.1:80/tcp or [fd00::1]:53/udp: %w",
		s, reason, ErrSyntax)
}

// MarshalText returns the same as [Frontend.String].
//
// Returns an error wrapping [ErrFamily] for an address that [ParseFrontend]
// would refuse.
func (f Frontend) MarshalText() ([]byte, error) {
	if err := checkAddr(f.AddrPort.Addr()); err != nil {
		return nil, fmt.Errorf("encoding service: %w", err)
	}
	return []byte(f.String()), nil
}

// UnmarshalText does the same as [ParseFrontend].
func (f *Frontend) UnmarshalText(text []byte) error {
	v, err := ParseFrontend(string(text))
	if err == nil {
		*f = v
	}
	return err
}

// Compare orders by address (IPv4 first), port, protocol and scope. It returns
// -1, 0 or 1.
func (f Frontend) Compare(g Frontend) int {
	return cmp.Or(
		f.AddrPort.Compare(g.AddrPort),
		cmp.Compare(f.Protocol, g.Protocol),
		cmp.Compare(f.Scope, g.Scope),
	)
}
