// SPDX-License-Identifier: Apache-2.0

package sockaddr

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAddressesThereAndBack(t *testing.T) {
	for _, test := range []struct {
		domain int
		addr   string
		kind   unix.Sockaddr
	}{
		{unix.AF_INET, "127.0.0.1:53", &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}}},
		{unix.AF_INET6, "[::1]:53", &unix.SockaddrInet6{Port: 53, Addr: [16]byte{15: 1}}},
		{unix.AF_INET6, "127.0.0.1:53", &unix.SockaddrInet6{Port: 53, Addr: [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}}},
	} {
		a := netip.MustParseAddrPort(test.addr)
		require.Equal(t, test.kind, Of(test.domain, a))
		require.Equal(t, a, AddrPort(test.kind))
	}
	require.Zero(t, AddrPort(nil), "none, as of a stream's recvfrom")
	require.Zero(t, AddrPort(&unix.SockaddrNetlink{}))
}

func TestDisconnect(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Connect(fd, Of(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:9"))))
	require.NoError(t, Disconnect(fd))
	_, err = unix.Getpeername(fd)
	require.ErrorIs(t, err, unix.ENOTCONN)
	require.NoError(t, unix.Close(fd))
	require.ErrorIs(t, Disconnect(fd), unix.EBADF)
}
