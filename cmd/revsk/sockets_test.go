// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// serviceAddr is that of the service of connectUDP: reserved for documentation.
const serviceAddr = "192.0.2.1:53"

// socket is a datagram socket.
type socket struct {
	fd     int
	closed *sync.Once
}

// connectUDP adds a service, and returns a socket that is connected to it until the test ends.
func connectUDP(t *testing.T, p place) socket {
	t.Helper()
	p.run("service", "add", serviceAddr+"/udp", "--backend", "127.0.0.1:5353").ok()
	s := newSocket(t)
	require.NoError(t, unix.Connect(s.fd, sockaddrOf(serviceAddr)))
	require.Equal(t, serviceAddr, s.peer(t))
	return s
}

func newSocket(t *testing.T) socket {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	s := socket{fd, new(sync.Once)}
	t.Cleanup(func() { s.close(t) })
	return s
}

// close closes the socket before the test ends.
func (s socket) close(t *testing.T) {
	s.closed.Do(func() { require.NoError(t, unix.Close(s.fd)) })
}

func sockaddrOf(addr string) unix.Sockaddr {
	return sockaddr.Of(unix.AF_INET, netip.MustParseAddrPort(addr))
}

// peer is the address that the application sees.
func (s socket) peer(t *testing.T) string {
	t.Helper()
	sa, err := unix.Getpeername(s.fd)
	require.NoError(t, err)
	return sockaddr.AddrPort(sa).String()
}

// sendToServices adds n services and sends a datagram to each.
func (s socket) sendToServices(t *testing.T, p place, n int) {
	t.Helper()
	for i := range n {
		addr := fmt.Sprintf("192.0.2.%d:53", 10+i)
		p.run("service", "add", addr+"/udp", "--backend", fmt.Sprintf("127.0.0.%d:5353", 10+i)).ok()
		require.NoError(t, unix.Sendto(s.fd, []byte("x"), 0, sockaddrOf(addr)))
	}
}

// listenTCP returns the address of a listener that accepts connections until the test ends.
func listenTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}
