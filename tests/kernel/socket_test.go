// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/revnat"
)

const (
	patience = time.Minute      // until an answer is taken for lost
	tick     = time.Millisecond // between looks at something that will change
)

// socket is a socket as the kernel has it, without a Go runtime in between.
type socket struct {
	*testing.T
	family
	fd       int
	protocol int
	closed   bool
}

func socketType(protocol int) int {
	if protocol == unix.IPPROTO_TCP {
		return unix.SOCK_STREAM
	}
	return unix.SOCK_DGRAM
}

func newSocket(f family, protocol int) (*socket, error) {
	fd, err := unix.Socket(f.domain, socketType(protocol)|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	x := &socket{family: f, fd: fd, protocol: protocol}
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return x, nil
}

// retry repeats a system call that a signal of the Go runtime has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (x *socket) tryConnect(to netip.AddrPort) error {
	err := unix.Connect(x.fd, x.sockaddr(to))
	if !errors.Is(err, unix.EINTR) {
		return err
	}
	// The connection is being made all the same.
	fds := []unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLOUT}}
	if err := retry(func() error { _, err := unix.Poll(fds, int(patience.Milliseconds())); return err }); err != nil {
		return err
	}
	code, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

func (x *socket) connect(to netip.AddrPort) {
	x.Helper()
	require.NoError(x, x.tryConnect(to), "connect to %v", to)
}

func (x *socket) tryDisconnect() error { return sockaddr.Disconnect(x.fd) }

func (x *socket) disconnect() {
	x.Helper()
	require.NoError(x, x.tryDisconnect(), "connect(AF_UNSPEC)")
}

func (x *socket) trySendTo(to netip.AddrPort, payload string) error {
	return retry(func() error { return unix.Sendto(x.fd, []byte(payload), 0, x.sockaddr(to)) })
}

func (x *socket) sendTo(to netip.AddrPort, payload string) {
	x.Helper()
	require.NoError(x, x.trySendTo(to, payload), "sendto %v", to)
}

func (x *socket) trySend(payload string) error {
	return retry(func() error { _, err := unix.Write(x.fd, []byte(payload)); return err })
}

func (x *socket) send(payload string) {
	x.Helper()
	require.NoError(x, x.trySend(payload), "send")
}

// tryReceive returns what was received and the address that the kernel says it is from: none for a
// stream.
func (x *socket) tryReceive(flags int) (payload string, from netip.AddrPort, err error) {
	var buf [2048]byte
	var n int
	var sa unix.Sockaddr
	err = retry(func() error { n, sa, err = unix.Recvfrom(x.fd, buf[:], flags); return err })
	if err != nil {
		return "", from, err
	}
	if sa != nil {
		from, err = x.address(sa)
	}
	return string(buf[:n]), from, err
}

func (x *socket) receive() (payload string, from netip.AddrPort) {
	x.Helper()
	payload, from, err := x.tryReceive(0)
	require.NoError(x, err, "recvfrom")
	return payload, from
}

// readable waits until there is something to receive.
func (x *socket) readable() {
	x.Helper()
	fds := []unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLIN}}
	var n int
	require.NoError(x, retry(func() (err error) { n, err = unix.Poll(fds, int(patience.Milliseconds())); return err }))
	require.Equal(x, 1, n, "nothing to receive")
}

func (x *socket) tryPeername() (netip.AddrPort, error) {
	sa, err := unix.Getpeername(x.fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return x.address(sa)
}

func (x *socket) peername() netip.AddrPort {
	x.Helper()
	peer, err := x.tryPeername()
	require.NoError(x, err, "getpeername")
	return peer
}

func (x *socket) sockname() netip.AddrPort {
	x.Helper()
	sa, err := unix.Getsockname(x.fd)
	require.NoError(x, err, "getsockname")
	name, err := x.address(sa)
	require.NoError(x, err)
	return name
}

func (x *socket) bind(to netip.AddrPort) {
	x.Helper()
	if x.domain == unix.AF_INET6 {
		// The host has its addresses by routes only.
		require.NoError(x, unix.SetsockoptInt(x.fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
	}
	require.NoError(x, unix.Bind(x.fd, x.sockaddr(to)), "bind to %v", to)
}

func (x *socket) close() {
	if !x.closed {
		x.closed = true
		_ = unix.Close(x.fd)
	}
}

func (x *socket) cookie() uint64 {
	x.Helper()
	cookie, err := unix.GetsockoptUint64(x.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	require.NoError(x, err, "SO_COOKIE")
	return cookie
}

// conn is the socket's value in revsk_conn; nil if it has none.
func (x *socket) conn() *revnat.Tuple {
	x.Helper()
	var v revnat.ConnValue
	if !x.stored("revsk_conn", &v) || v.Tuple == (revnat.Tuple{}) {
		return nil
	}
	return &v.Tuple
}

// former is the tuple of the socket's former connection; nil if it has none.
func (x *socket) former() *revnat.Tuple {
	x.Helper()
	var v revnat.FormerValue
	if !x.stored("revsk_former", &v) {
		return nil
	}
	return &v.Tuple
}

// peers is the socket's value in revsk_peers, empty if it has none.
func (x *socket) peers() revnat.PeersValue {
	x.Helper()
	var v revnat.PeersValue
	x.stored("revsk_peers", &v)
	return v
}

func (x *socket) stored(name string, value any) bool {
	x.Helper()
	err := datapath.Map(name).Lookup(uint32(x.fd), value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false
	}
	require.NoError(x, err, name)
	return true
}

// tuples is how many the socket holds.
func (x *socket) tuples() int {
	x.Helper()
	p := x.peers()
	n := len(p.Tuples()) + int(p.TableCount)
	for _, t := range []*revnat.Tuple{x.conn(), x.former()} {
		if t != nil {
			n++
		}
	}
	return n
}

// abort destroys the socket from outside, as ss --kill does. It does not close it.
func (x *socket) abort(local, remote netip.AddrPort) {
	x.Helper()
	needDestroy(x.T)
	require.NoError(x, destroySocket(x.family, x.protocol, local, remote, x.cookie()), "SOCK_DESTROY")
}

const (
	sockDestroy     = 21 // SOCK_DESTROY of linux/sock_diag.h
	diagRequestSize = 56 // struct inet_diag_req_v2

	anyCookie = ^uint64(0) // INET_DIAG_NOCOOKIE, twice
)

func destroySocket(f family, protocol int, local, remote netip.AddrPort, cookie uint64) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	address := func(b []byte, a netip.Addr) {
		if f.domain == unix.AF_INET6 {
			a16 := a.As16()
			copy(b, a16[:])
		} else {
			copy(b, a.AsSlice())
		}
	}
	b := make([]byte, unix.SizeofNlMsghdr+diagRequestSize)
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], sockDestroy)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	r := b[unix.SizeofNlMsghdr:]
	r[0], r[1] = byte(f.domain), byte(protocol)
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // in whatever state
	binary.BigEndian.PutUint16(r[8:], local.Port())
	binary.BigEndian.PutUint16(r[10:], remote.Port())
	address(r[12:], local.Addr())
	address(r[28:], remote.Addr())
	binary.NativeEndian.PutUint32(r[48:], uint32(cookie))
	binary.NativeEndian.PutUint32(r[52:], uint32(cookie>>32))
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("not an acknowledgement")
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// same checks two addresses, and shows them in a form that one can read if they differ.
func same(t require.TestingT, want, got netip.AddrPort, what string) {
	if h, ok := t.(interface{ Helper() }); ok {
		h.Helper()
	}
	require.Equal(t, want.String(), got.String(), what)
}
