// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// Every address of backends and many ports are servers, by a few sockets bound to all addresses:
// they answer what they are sent, with the address that it came to behind it.
const (
	firstPort   = 7001
	serverPorts = 4
)

// backendAt is the address of a server.
func (f family) backendAt(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(f.backends, n/serverPorts), uint16(firstPort+n%serverPorts))
}

// answer to a payload of the server at the address.
func answer(payload string, at netip.AddrPort) string { return payload + "@" + at.String() }

func startServers() error {
	for i := range serverPorts {
		port := firstPort + i
		if err := serveDatagrams("udp4", port); err != nil {
			return err
		}
		if err := serveUDPLite(unix.AF_INET, port); err != nil {
			return err
		}
		if err := serveStreams("tcp4", port); err != nil {
			return err
		}
		if !haveIPv6 {
			continue
		}
		if err := serveDatagrams("udp6", port); err != nil {
			return err
		}
		if err := serveUDPLite(unix.AF_INET6, port); err != nil {
			return err
		}
		if err := serveStreams("tcp6", port); err != nil {
			return err
		}
	}
	return nil
}

func listenControl(v6, datagram bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var errs []error
		set := func(fd, level, opt, value int) {
			errs = append(errs, unix.SetsockoptInt(fd, level, opt, value))
		}
		err := raw.Control(func(ptr uintptr) {
			fd := int(ptr)
			if v6 {
				set(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			}
			if !datagram {
				return
			}
			set(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
			if v6 {
				set(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
				// To answer from an address that the host has by a route only.
				set(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			} else {
				set(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		})
		return errors.Join(append(errs, err)...)
	}
}

func serveDatagrams(network string, port int) error {
	v6 := network == "udp6"
	lc := net.ListenConfig{Control: listenControl(v6, true)}
	pc, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go answerDatagrams(pc.(*net.UDPConn), v6, port)
	return nil
}

// serveUDPLite is serveDatagrams for UDP-Lite, which package net cannot open, only use. Not every kernel has it.
func serveUDPLite(domain, port int) error {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDPLITE)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "UDP-Lite")
	defer file.Close() // the connection has a descriptor of its own
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	v6 := domain == unix.AF_INET6
	if err := listenControl(v6, true)("", "", raw); err != nil {
		return err
	}
	var any unix.Sockaddr = &unix.SockaddrInet4{Port: port}
	if v6 {
		any = &unix.SockaddrInet6{Port: port}
	}
	if err := unix.Bind(fd, any); err != nil {
		return err
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return err
	}
	go answerDatagrams(conn.(*net.UDPConn), v6, port)
	return nil
}

func answerDatagrams(conn *net.UDPConn, v6 bool, port int) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, noob, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			continue // ICMP errors of sockets that were closed
		}
		at, control := destination(v6, oob[:noob])
		reply := answer(string(buf[:n]), netip.AddrPortFrom(at, uint16(port)))
		if _, _, err := conn.WriteMsgUDPAddrPort([]byte(reply), control, from); err != nil {
			fmt.Fprintln(os.Stderr, "an answer was lost:", err)
		}
	}
}

// destination reads where a datagram was sent to, and returns the control message that sends from
// there.
func destination(v6 bool, oob []byte) (netip.Addr, []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return netip.Addr{}, nil
	}
	data := messages[0].Data
	if v6 {
		info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
		return netip.AddrFrom16(info.Addr), unix.PktInfo6(&unix.Inet6Pktinfo{Addr: info.Addr})
	}
	info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
	return netip.AddrFrom4(info.Addr), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: info.Addr})
}

func serveStreams(network string, port int) error {
	lc := net.ListenConfig{Control: listenControl(network == "tcp6", false)}
	l, err := lc.Listen(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				continue
			}
			go serveStream(conn)
		}
	}()
	return nil
}

func serveStream(conn net.Conn) {
	defer conn.Close()
	at := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write([]byte(answer(string(buf[:n]), at))); err != nil {
			return
		}
	}
}

// split takes an answer apart: the payload that was sent and the server that answered.
func split(reply string) (payload string, at netip.AddrPort) {
	i := strings.LastIndexByte(reply, '@')
	if i < 0 {
		return reply, at
	}
	at, _ = netip.ParseAddrPort(reply[i+1:])
	return reply[:i], at
}
