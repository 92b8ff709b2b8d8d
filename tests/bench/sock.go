// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// The calls that are measured go to the kernel directly, without the Go scheduler, and what they
// need is prepared before.

// address is a socket address as the kernel takes it.
type address struct {
	raw unix.RawSockaddrInet6 // the larger one
	len uintptr
}

func newAddress(a netip.AddrPort) *address {
	s := new(address)
	port := a.Port()<<8 | a.Port()>>8
	if a.Addr().Is4() {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		four.Family, four.Port, four.Addr = unix.AF_INET, port, a.Addr().As4()
		s.len = unix.SizeofSockaddrInet4
		return s
	}
	s.raw.Family, s.raw.Port, s.raw.Addr = unix.AF_INET6, port, a.Addr().As16()
	s.len = unix.SizeofSockaddrInet6
	return s
}

func (s *address) addrPort() netip.AddrPort {
	port := s.raw.Port<<8 | s.raw.Port>>8
	if s.raw.Family == unix.AF_INET {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(s.raw.Addr), port)
}

func (s *address) pointer() uintptr { return uintptr(unsafe.Pointer(s)) }

// must ends the program's hope: a call that is measured has failed. The panic becomes an error in
// [rounds.play].
func must(what string, errno unix.Errno) {
	if errno != 0 {
		panic(fmt.Errorf("%s: %w", what, errno))
	}
}

func openSocket(domain, protocol int) int {
	kind := unix.SOCK_DGRAM
	if protocol == unix.IPPROTO_TCP {
		kind = unix.SOCK_STREAM
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(domain), uintptr(kind|unix.SOCK_CLOEXEC), uintptr(protocol))
	must("socket", errno)
	if protocol == unix.IPPROTO_TCP {
		// Closed with a reset, so that no port is kept waiting.
		must("SO_LINGER", errnoOf(unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})))
	}
	return int(fd)
}

func errnoOf(err error) unix.Errno {
	errno, _ := err.(unix.Errno)
	if err != nil && errno == 0 {
		panic(err)
	}
	return errno
}

func openSockets(domain, protocol, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = openSocket(domain, protocol)
	}
	return fds
}

func connect(fd int, to *address) {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), to.pointer(), to.len)
	must("connect", errno)
}

func closeSocket(fd int) {
	_, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	must("close", errno)
}

func getpeername(fd int, peer *address) {
	n := uint32(unsafe.Sizeof(peer.raw))
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), peer.pointer(), uintptr(unsafe.Pointer(&n)))
	must("getpeername", errno)
}

func getsockname(fd int, name *address) {
	n := uint32(unsafe.Sizeof(name.raw))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), name.pointer(), uintptr(unsafe.Pointer(&n)))
	must("getsockname", errno)
	name.len = uintptr(n)
}

var payload = [16]byte{}

func sendTo(fd int, to *address) {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&payload)), unsafe.Sizeof(payload), unix.MSG_DONTWAIT, to.pointer(), to.len)
	must("sendto", errno)
}

// receive returns false if there is nothing to be received.
func receive(fd int, from *address) bool {
	var b [64]byte
	n := uint32(unsafe.Sizeof(from.raw))
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), unsafe.Sizeof(b), unix.MSG_DONTWAIT, from.pointer(), uintptr(unsafe.Pointer(&n)))
	if errno == unix.EAGAIN {
		return false
	}
	must("recvfrom", errno)
	return true
}

func bindTo(fd int, to *address) {
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), to.pointer(), to.len)
	must("bind", errno)
}

// servers are what the backends' addresses lead to. They are of the process's first cgroup, to which
// no hook is attached.
type servers struct {
	udp, tcp map[*family]int
}

func startServers() (*servers, error) {
	s := &servers{udp: make(map[*family]int), tcp: make(map[*family]int)}
	for _, f := range families {
		any := netip.IPv4Unspecified()
		if f == ipv6 {
			any = netip.IPv6Unspecified()
		}
		at := newAddress(netip.AddrPortFrom(any, serverPort))
		for protocol, fds := range map[int]map[*family]int{unix.IPPROTO_UDP: s.udp, unix.IPPROTO_TCP: s.tcp} {
			fd := openSocket(f.domain, protocol)
			fds[f] = fd
			if f == ipv6 {
				// The host has its addresses by routes only: answering from one is like binding to it.
				for _, option := range []int{unix.IPV6_V6ONLY, unix.IPV6_FREEBIND} {
					if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, 1); err != nil {
						return nil, err
					}
				}
			}
			bindTo(fd, at)
			if protocol != unix.IPPROTO_TCP {
				continue
			}
			if err := unix.SetNonblock(fd, true); err != nil {
				return nil, err
			}
			if err := unix.Listen(fd, 4096); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// hangUp accepts what has connected and closes it.
func (s *servers) hangUp(f *family) {
	for {
		fd, _, errno := unix.RawSyscall(unix.SYS_ACCEPT, uintptr(s.tcp[f]), 0, 0)
		if errno == unix.EAGAIN {
			return
		}
		must("accept", errno)
		closeSocket(int(fd))
	}
}

// drain receives what was sent to the server and forgets it.
func (s *servers) drain(f *family) {
	var from address
	for receive(s.udp[f], &from) {
	}
}

// answer sends to a client, from one of the addresses of this host.
func (s *servers) answer(f *family, from netip.Addr, to netip.AddrPort) {
	var control []byte
	var sa unix.Sockaddr
	if f == ipv4 {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
		sa = sockaddr.Of(unix.AF_INET, to)
	} else {
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
		sa = sockaddr.Of(unix.AF_INET6, to)
	}
	must("sendmsg", errnoOf(unix.Sendmsg(s.udp[f], payload[:], control, sa, unix.MSG_DONTWAIT)))
	runtime.KeepAlive(control)
}

// cookie is a socket's; asking makes the kernel give it one.
func cookie(fd int) uint64 {
	var b [8]byte
	n := uint32(len(b))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE, uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)), 0)
	must("SO_COOKIE", errno)
	return binary.NativeEndian.Uint64(b[:])
}
