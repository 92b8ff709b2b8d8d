// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

// family is what differs between the kinds of sockets that the same rules hold for. Addresses are
// numbered; IPv4 ones are plain, whatever the socket.
type family struct {
	name   string
	domain int
	mapped bool // IPv4 through IPv6 sockets

	services   netip.Addr // number 0; no route leads there
	backends   netip.Addr // number 0; all are this host's
	plain      netip.Addr // number 0; this host's, of no service
	unroutable netip.Addr
}

var (
	ipv4 = family{
		name: "IPv4", domain: unix.AF_INET,
		services:   netip.MustParseAddr("10.96.0.0"),
		backends:   netip.MustParseAddr("127.1.0.0"),
		plain:      netip.MustParseAddr("127.2.0.0"),
		unroutable: netip.MustParseAddr("192.0.2.1"),
	}
	ipv6 = family{
		name: "IPv6", domain: unix.AF_INET6,
		services:   netip.MustParseAddr("fd00:96::"),
		backends:   netip.MustParseAddr("fd00:1::"),
		plain:      netip.MustParseAddr("fd00:2::"),
		unroutable: netip.MustParseAddr("2001:db8::1"),
	}
	v4mapped = family{
		name: "v4-mapped", domain: unix.AF_INET6, mapped: true,
		services: ipv4.services, backends: ipv4.backends, plain: ipv4.plain, unroutable: ipv4.unroutable,
	}
	families = []family{ipv4, ipv6, v4mapped}
)

// Networks of this host: IPv4 has 127.0.0.0/8 anyway.
var localNetworks = []string{"fd00:1::/64", "fd00:2::/64", "10.97.0.0/16", "fd00:97::/64"}

// sockaddr is an address as sockets of the family take it.
func (f family) sockaddr(a netip.AddrPort) unix.Sockaddr {
	return sockaddr.Of(f.domain, a)
}

// errForeign is wrapped by the error of an address that is not of a socket's family.
var errForeign = errors.New("not of this family")

// address is the inverse of sockaddr. It returns an error wrapping errForeign for an address that
// sockets of the family should not see.
func (f family) address(sa unix.Sockaddr) (netip.AddrPort, error) {
	own := false
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		own = f.domain == unix.AF_INET
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		own = f.domain == unix.AF_INET6 && (a.Is4In6() == f.mapped || a.IsUnspecified())
	}
	if own {
		return sockaddr.AddrPort(sa), nil
	}
	return netip.AddrPort{}, fmt.Errorf("%s socket: %w: %#v", f.name, errForeign, sa)
}

// any is the unspecified address, as a socket of the family has it.
func (f family) any() netip.Addr {
	if f.domain == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func setUpNetwork() error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		haveIPv6 = true
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, n := range localNetworks {
		network := netip.MustParsePrefix(n)
		if network.Addr().Is6() && !haveIPv6 {
			continue
		}
		if _, err := sandbox.MakeLocal(network); err != nil {
			return err
		}
	}
	return nil
}
