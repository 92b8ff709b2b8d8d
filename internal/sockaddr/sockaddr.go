// SPDX-License-Identifier: Apache-2.0

// Package sockaddr converts addresses to what system calls take, and back.
// Package unix has no address that ends a connection: [Disconnect] has.
package sockaddr

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of is the address for a socket of a domain, AF_INET or AF_INET6. To the latter it gives an IPv4 address as v4-mapped.
func Of(domain int, a netip.AddrPort) unix.Sockaddr {
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// AddrPort is the inverse of [Of]; the zero value for another kind of address, or none.
func AddrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Disconnect ends the connection of a socket: connect(2) to an address of the family AF_UNSPEC.
func Disconnect(fd int) error {
	unspecified := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspecified)), unsafe.Sizeof(unspecified))
	runtime.KeepAlive(&unspecified)
	if errno != 0 {
		return errno
	}
	return nil
}
