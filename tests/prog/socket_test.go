// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

// family is what differs between the kinds of sockets that the same rules hold
// for. Services and backends are numbered; the number is their index, or id, too.
type family struct {
	name     string
	domain   int
	loopback netip.Addr // what sockets are bound to
	services netip.Addr // number 0
	backends netip.Addr
}

var (
	ipv4 = family{
		name: "IPv4", domain: unix.AF_INET,
		loopback: netip.MustParseAddr("127.0.0.1"),
		services: netip.MustParseAddr("10.96.0.0"),
		backends: netip.MustParseAddr("10.0.0.0"),
	}
	ipv6 = family{
		name: "IPv6", domain: unix.AF_INET6,
		loopback: netip.MustParseAddr("::1"),
		services: netip.MustParseAddr("fd00:96::"),
		backends: netip.MustParseAddr("fd00:10::"),
	}
	v4mapped = family{
		name: "v4-mapped", domain: unix.AF_INET6,
		loopback: netip.MustParseAddr("::ffff:127.0.0.1"),
		services: ipv4.services,
		backends: ipv4.backends,
	}
	families = []family{ipv4, ipv6, v4mapped}
)

func (f family) service(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(f.services, n), 80)
}
func (f family) backend(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(f.backends, n), 8080)
}

// socket is a socket on loopback that programs find.
type socket struct {
	fd     int
	cookie uint64
	tcp    bool
	packet [36]byte // a packet that it would receive, as struct bpf_sock_tuple
	v6     bool     // the packet is
	others []int    // that it needs as long as it lives
}

func openSocket(t *testing.T, f family, tcp bool) *socket {
	t.Helper()
	s := &socket{tcp: tcp}
	var remote netip.AddrPort
	var err error
	if tcp {
		listener := bound(t, f, unix.SOCK_STREAM)
		s.others = append(s.others, listener)
		must(t, unix.Listen(listener, 1))
		remote = localAddr(t, listener)
		s.fd = newSocket(t, f, unix.SOCK_STREAM)
		must(t, unix.Connect(s.fd, sockaddr.Of(f.domain, netip.AddrPortFrom(f.loopback, remote.Port()))))
	} else {
		s.fd = bound(t, f, unix.SOCK_DGRAM)
		remote = netip.AddrPortFrom(f.loopback.Unmap(), 9)
	}
	local := localAddr(t, s.fd)
	s.v6 = local.Addr().Is6()
	packet := append(remote.Addr().AsSlice(), local.Addr().AsSlice()...)
	packet = binary.BigEndian.AppendUint16(packet, remote.Port())
	packet = binary.BigEndian.AppendUint16(packet, local.Port())
	copy(s.packet[:], packet)
	s.cookie, err = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must(t, err)
	return s
}

func (s *socket) close() {
	for _, fd := range append(s.others, s.fd) {
		_ = unix.Close(fd)
	}
}

// newSocket skips the test on a machine without IPv6 if the family needs it.
func newSocket(t *testing.T, f family, kind int) int {
	t.Helper()
	fd, err := unix.Socket(f.domain, kind|unix.SOCK_CLOEXEC, 0)
	if f.domain == unix.AF_INET6 && errors.Is(err, unix.EAFNOSUPPORT) {
		oldkernel.SkipWithoutIPv6(t)
	}
	must(t, err)
	return fd
}

func bound(t *testing.T, f family, kind int) int {
	t.Helper()
	fd := newSocket(t, f, kind)
	must(t, unix.Bind(fd, sockaddr.Of(f.domain, netip.AddrPortFrom(f.loopback, 0))))
	return fd
}

// localAddr returns what a socket is bound to; a v4-mapped address as IPv4.
func localAddr(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	must(t, err)
	return sockaddr.AddrPort(sa)
}
