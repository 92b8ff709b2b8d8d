// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
)

func TestMain(m *testing.M) { os.Exit(sandbox.TestMain(m.Run)) }

var loopbacks = []struct {
	name   string
	family int
	addr   netip.Addr
}{
	{"IPv4", unix.AF_INET, netip.MustParseAddr("127.0.0.1")},
	{"IPv6", unix.AF_INET6, netip.MustParseAddr("::1")},
	{"v4-mapped", unix.AF_INET6, netip.MustParseAddr("127.0.0.1")},
}

// eachKind runs a test for every family and protocol, with a server and a client connected to it.
func eachKind(t *testing.T, f func(t *testing.T, client int, want Socket)) {
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, l := range loopbacks {
			t.Run(map[int]string{unix.IPPROTO_TCP: "tcp ", unix.IPPROTO_UDP: "udp "}[protocol]+l.name, func(t *testing.T) {
				server, client := open(t, l.family, protocol), open(t, l.family, protocol)
				require.NoError(t, unix.Bind(server, sockaddr.Of(l.family, netip.AddrPortFrom(l.addr, 0))))
				if protocol == unix.IPPROTO_TCP {
					require.NoError(t, unix.Listen(server, 1))
				}
				// In another device than the address's own, only a socket that says so is found.
				require.NoError(t, unix.BindToDevice(client, "lo"))
				remote := local(t, server)
				require.NoError(t, unix.Connect(client, sockaddr.Of(l.family, remote)))
				var st unix.Stat_t
				require.NoError(t, unix.Fstat(client, &st))
				cookie, err := unix.GetsockoptUint64(client, unix.SOL_SOCKET, unix.SO_COOKIE)
				require.NoError(t, err)
				f(t, client, Socket{
					Family: l.family, Protocol: protocol, Local: local(t, client), Remote: remote,
					Device: 1, Cookie: cookie, Inode: uint32(st.Ino),
				})
			})
		}
	}
}

func open(t *testing.T, family, protocol int) int {
	t.Helper()
	kind := unix.SOCK_DGRAM
	if protocol == unix.IPPROTO_TCP {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func local(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return sockaddr.AddrPort(sa)
}

func TestListsWhatIsConnectedToAPort(t *testing.T) {
	eachKind(t, func(t *testing.T, _ int, want Socket) {
		got, err := List(want.Family, want.Protocol, want.Remote.Port())
		require.NoError(t, err)
		assert.Equal(t, []Socket{want}, got)
		all, err := List(want.Family, want.Protocol, 0)
		require.NoError(t, err)
		assert.Contains(t, all, want)
		assert.Greater(t, len(all), 1, "the server too")
	})
}

func TestDestroysTheSocketAndNoOther(t *testing.T) {
	eachKind(t, func(t *testing.T, client int, s Socket) {
		other := s
		other.Cookie++
		require.ErrorIs(t, Destroy(other), os.ErrNotExist)
		other = s
		other.Local = netip.AddrPortFrom(s.Local.Addr(), s.Local.Port()^1)
		require.ErrorIs(t, Destroy(other), os.ErrNotExist)
		require.Zero(t, socketError(t, client))

		require.NoError(t, Destroy(s))
		assert.Equal(t, unix.ECONNABORTED, socketError(t, client))
		got, err := List(s.Family, s.Protocol, s.Remote.Port())
		require.NoError(t, err)
		assert.Empty(t, got)
	})
}

func socketError(t *testing.T, fd int) unix.Errno {
	t.Helper()
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	require.NoError(t, err)
	return unix.Errno(code)
}

func TestAProtocolThatTheKernelCannotDiagnoseIsNotSupported(t *testing.T) {
	_, err := List(unix.AF_INET, unix.IPPROTO_ICMP, 0)
	assert.ErrorIs(t, err, ErrNotSupported)
	assert.ErrorIs(t, Probe(unix.IPPROTO_ICMP), ErrNotSupported)
	assert.NoError(t, Probe(unix.IPPROTO_TCP))
	assert.NoError(t, Probe(unix.IPPROTO_UDP))
	_, err = parse(make([]byte, responseSize-1), unix.IPPROTO_TCP)
	assert.Error(t, err)
}
