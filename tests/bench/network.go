// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// family is what differs between the kinds of sockets. Addresses are numbered.
type family struct {
	name     string
	digit    string // of the hooks
	domain   int
	services netip.Addr // number 0; no route leads there
	backends netip.Addr // number 0; all are this host's
	plain    netip.Addr // this host's, of no service
}

var (
	ipv4 = &family{
		name: "IPv4", digit: "4", domain: unix.AF_INET,
		services: netip.MustParseAddr("10.96.0.0"),
		backends: netip.MustParseAddr("127.1.0.0"),
		plain:    netip.MustParseAddr("127.2.0.1"),
	}
	ipv6 = &family{
		name: "IPv6", digit: "6", domain: unix.AF_INET6,
		services: netip.MustParseAddr("fd00:96::"),
		backends: netip.MustParseAddr("fd00:1::"),
		plain:    netip.MustParseAddr("fd00:2::1"),
	}
	families = []*family{ipv4, ipv6}
)

const (
	servicePort = 53
	serverPort  = 7
)

func (f *family) service(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(f.services, n), servicePort)
}

func (f *family) backend(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(f.backends, n), serverPort)
}

func (f *family) stranger() netip.AddrPort { return netip.AddrPortFrom(f.plain, serverPort) }

// setUpNetwork makes the IPv6 addresses local; those of IPv4 are anyway.
func setUpNetwork() error {
	for _, network := range []string{"fd00:1::/64", "fd00:2::/64"} {
		if _, err := sandbox.MakeLocal(netip.MustParsePrefix(network)); err != nil {
			return err
		}
	}
	return nil
}
