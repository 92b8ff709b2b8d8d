// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/internal/sockdiag"
)

// notSupportedError says what this kernel cannot do: a case that needs it is reported as such.
type notSupportedError string

func (e notSupportedError) Error() string { return "not supported here: " + string(e) }

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
	if _, err := sockdiag.List(c.socket, c.protocol, remote.Port()); err != nil {
		return diagError(err)
	}
	err = sockdiag.Destroy(sockdiag.Socket{
		Family: c.socket, Protocol: c.protocol, Local: sockaddr.AddrPort(sa), Remote: remote, Cookie: cookie,
	})
	if err != nil {
		return diagError(err)
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

// diagError makes a notSupportedError of what the kernel cannot do.
func diagError(err error) error {
	if errors.Is(err, sockdiag.ErrNotSupported) {
		return notSupportedError("SOCK_DESTROY: " + err.Error())
	}
	return err
}
