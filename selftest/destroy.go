// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// notSupportedError says what this kernel cannot do: a case that needs it is reported as such.
type notSupportedError string

func (e notSupportedError) Error() string { return "not supported here: " + string(e) }

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	family, protocol int
	local, remote    netip.AddrPort
	cookie           uint64
}

const diagRequestSize = 56

func (r *diagRequest) Len() int { return diagRequestSize }

func (r *diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = byte(r.family), byte(r.protocol)
	binary.NativeEndian.PutUint32(b[4:8], ^uint32(0)) // every state
	binary.BigEndian.PutUint16(b[8:10], r.local.Port())
	binary.BigEndian.PutUint16(b[10:12], r.remote.Port())
	putAddr := func(b []byte, a netip.Addr) {
		if r.family == unix.AF_INET {
			copy(b, a.AsSlice())
		} else if a.IsValid() {
			a16 := a.As16()
			copy(b, a16[:])
		}
	}
	putAddr(b[12:28], r.local.Addr())
	putAddr(b[28:44], r.remote.Addr())
	binary.NativeEndian.PutUint32(b[48:52], uint32(r.cookie))
	binary.NativeEndian.PutUint32(b[52:56], uint32(r.cookie>>32))
	return b
}

// destroy aborts the socket from outside, as an operator (ss -K) or an agent does. remote is where
// the kernel has it connected to. Returns a notSupportedError where there is no such thing.
func (c *client) destroy(remote netip.AddrPort) error {
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(c.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("getting the socket cookie: %w", err)
	}
	if err := probeDiag(c.socket, c.protocol); err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(&diagRequest{c.socket, c.protocol, addrPort(sa), remote, cookie})
	_, err = req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return notSupportedError("SOCK_DESTROY: the kernel is built without CONFIG_INET_DIAG_DESTROY")
	}
	if err != nil {
		return fmt.Errorf("SOCK_DESTROY of %v to %v: %w", addrPort(sa), remote, err)
	}
	errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("getting the socket's error: %w", err)
	}
	if unix.Errno(errno) != unix.ECONNABORTED {
		return fmt.Errorf("the socket was to be aborted, its error is %d", errno)
	}
	return nil
}

// probeDiag finds out whether the kernel can tell of, and destroy, sockets of a protocol: of one that
// it cannot, it says ENOENT, as it does of a socket that does not exist.
func probeDiag(family, protocol int) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(&diagRequest{family: family, protocol: protocol})
	_, err := req.Execute(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	switch {
	case err == nil, errors.Is(err, nl.ErrDumpInterrupted):
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTONOSUPPORT):
		module := "udp_diag"
		if protocol == unix.IPPROTO_TCP {
			module = "tcp_diag"
		}
		return notSupportedError("SOCK_DESTROY: the kernel has no socket diagnosis: load the modules inet_diag and " + module)
	}
	return fmt.Errorf("asking for sockets: %w", err)
}
