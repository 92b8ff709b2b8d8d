// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// patience is how long a call on a socket may take, in seconds. Everything is local.
const patience = 5

var message = []byte("revsk selftest")

// client is an application's socket. It is used by system calls alone, so that its descriptor is
// closed, and the socket released, when close says so.
type client struct {
	flavor
	fd int
}

func newClient(n flavor) (*client, error) {
	typ := unix.SOCK_DGRAM
	if n.protocol == unix.IPPROTO_TCP {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(n.socket, typ|unix.SOCK_CLOEXEC, n.protocol)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	c := &client{n, fd}
	tv := unix.Timeval{Sec: patience}
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("setsockopt: %w", err), c.close())
	}
	return c, nil
}

// dial returns a socket connected to the service, having made sure that the service answers and that
// the application sees its address.
func dial(n flavor, service netip.AddrPort) (*client, error) {
	c, err := newClient(n)
	if err != nil {
		return nil, err
	}
	if err := c.connectService(service); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *client) connectService(service netip.AddrPort) error {
	if err := c.connect(service); err != nil {
		return err
	}
	peer, err := c.peer()
	if err != nil {
		return err
	}
	if peer != service {
		return fmt.Errorf("connected to service %v, getpeername says %v", service, peer)
	}
	return c.exchange(netip.AddrPort{})
}

func (c *client) close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

func (c *client) connect(to netip.AddrPort) error {
	err := uninterrupted(func() error { return unix.Connect(c.fd, sockaddr.Of(c.socket, to)) })
	// EISCONN: the connection was made after an interruption.
	if err != nil && !(c.protocol == unix.IPPROTO_TCP && errors.Is(err, unix.EISCONN)) {
		return fmt.Errorf("connect to %v: %w", to, err)
	}
	return nil
}

func (c *client) disconnect() error {
	if err := sockaddr.Disconnect(c.fd); err != nil {
		return fmt.Errorf("connect to AF_UNSPEC: %w", err)
	}
	return nil
}

func (c *client) peer() (netip.AddrPort, error) {
	sa, err := unix.Getpeername(c.fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("getpeername: %w", err)
	}
	return sockaddr.AddrPort(sa), nil
}

// exchange sends a message and waits for its echo: to the address given, or to what the socket is
// connected to. A datagram's echo has to come from where it was sent to.
func (c *client) exchange(to netip.AddrPort) error {
	err := uninterrupted(func() error {
		if to.IsValid() {
			return unix.Sendto(c.fd, message, unix.MSG_NOSIGNAL, sockaddr.Of(c.socket, to))
		}
		return unix.Send(c.fd, message, unix.MSG_NOSIGNAL)
	})
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var n int
	var from unix.Sockaddr
	buf := make([]byte, len(message))
	err = uninterrupted(func() error {
		n, from, err = unix.Recvfrom(c.fd, buf, unix.MSG_WAITALL)
		return err
	})
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if string(buf[:n]) != string(message) {
		return fmt.Errorf("received %q and not what was sent", buf[:n])
	}
	if c.protocol == unix.IPPROTO_TCP {
		return nil
	}
	if !to.IsValid() {
		if to, err = c.peer(); err != nil {
			return err
		}
	}
	if got := sockaddr.AddrPort(from); got != to {
		return fmt.Errorf("sent to %v, the answer is from %v", to, got)
	}
	return nil
}

// uninterrupted repeats a system call that a signal has interrupted. Go's runtime sends itself signals,
// and the kernel does not restart calls on sockets with a timeout.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
