// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

// The kernel by itself keeps the application waiting for a minute.
func TestAnMPTCPSocketEndsWithItsConnection(t *testing.T) {
	eachMechanism(t, func(t *testing.T, mechanism destroyer) {
		d := newDatapath(t)
		backend := netip.MustParseAddrPort("127.0.0.1:23456")
		listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
			oldkernel.SkipWithout(t, "CONFIG_MPTCP", oldkernel.Has(t, "/proc/sys/net/mptcp"))
		}
		require.NoError(t, err)
		defer unix.Close(listener)
		at := sockaddr.Of(unix.AF_INET, backend)
		require.NoError(t, unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		require.NoError(t, unix.Bind(listener, at))
		require.NoError(t, unix.Listen(listener, 1))
		svc := d.addServiceFor(t, 0, netip.MustParseAddr("10.96.0.1"), backend, lbmap.ProtocolTCP)

		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		require.NoError(t, err)
		defer unix.Close(fd)
		require.NoError(t, unix.Connect(fd, sockaddr.Of(unix.AF_INET, svc.front)))
		accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		require.NoError(t, err)
		defer unix.Close(accepted)
		// An exchange, after which both ends speak MPTCP.
		for _, ends := range [][2]int{{fd, accepted}, {accepted, fd}} {
			_, err = unix.Write(ends[0], []byte("x"))
			require.NoError(t, err)
			_, err = unix.Read(ends[1], make([]byte, 1))
			require.NoError(t, err)
		}
		all, err := Sockets(t.Context(), d.Maps, Options{})
		require.NoError(t, err)
		require.Len(t, all, 1)
		assert.True(t, all[0].Subflow)
		assert.Equal(t, []Process{self(t)}, all[0].Owners)

		require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
		report, err := terminateBy(t, d.Maps, TerminateOptions{Backends: []Backend{{backend, lbmap.ProtocolTCP}}}, mechanism)
		require.NoError(t, err)
		require.Equal(t, 1, report.Count(OutcomeDestroyed))
		n, err := unix.Read(fd, make([]byte, 1))
		assert.True(t, err != nil || n == 0, "it reads on")
		assert.NotErrorIs(t, err, unix.EAGAIN)
		_, err = unix.SendmsgN(fd, []byte("x"), nil, nil, unix.MSG_NOSIGNAL)
		assert.ErrorIs(t, err, unix.EPIPE)
	})
}
