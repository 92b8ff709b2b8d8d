// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// testSocket is a descriptor of a socket of the test's own.
type testSocket struct {
	fd       int
	family   Family
	protocol lbmap.Protocol
	netns    NetNS
}

func open(t testing.TB, family Family, protocol lbmap.Protocol) *testSocket {
	t.Helper()
	kind := unix.SOCK_DGRAM
	if protocol == lbmap.ProtocolTCP {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(int(family), kind|unix.SOCK_CLOEXEC, int(protocol))
	require.NoError(t, err)
	s := &testSocket{fd, family, protocol, ownNetNS(t)}
	t.Cleanup(s.close)
	return s
}

func (s *testSocket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// closeAtOnce closes a socket, and waits until the kernel has closed it, which is later if another process, which iterates over all
// open files, is just looking at it.
func (s *testSocket) closeAtOnce(t testing.TB) {
	t.Helper()
	inode := fmt.Sprintf(" %d ", s.inode(t))
	s.close()
	require.Eventually(t, func() bool {
		for _, list := range []string{"tcp", "tcp6", "udp", "udp6"} {
			text, err := os.ReadFile("/proc/self/net/" + list)
			if err != nil && !errors.Is(err, os.ErrNotExist) || strings.Contains(string(text), inode) {
				return false
			}
		}
		return true
	}, time.Minute, time.Millisecond)
}

func (s *testSocket) sockaddr(to netip.AddrPort) unix.Sockaddr {
	if s.family == IPv4 {
		return sockaddr.Of(unix.AF_INET, to)
	}
	return sockaddr.Of(unix.AF_INET6, to)
}

func (s *testSocket) connect(t testing.TB, to netip.AddrPort) {
	t.Helper()
	require.NoError(t, unix.Connect(s.fd, s.sockaddr(to)), "connecting to %v", to)
}

func (s *testSocket) disconnect(t testing.TB) {
	t.Helper()
	require.NoError(t, sockaddr.Disconnect(s.fd), "disconnecting")
}

func (s *testSocket) send(t testing.TB, to ...service) {
	t.Helper()
	for _, svc := range to {
		require.NoError(t, s.sendTo(svc.front), "sending to %v", svc.front)
	}
}

func (s *testSocket) sendTo(to netip.AddrPort) error {
	return unix.Sendto(s.fd, []byte("hello"), 0, s.sockaddr(to))
}

func (s *testSocket) listen(t testing.TB, at netip.AddrPort) {
	t.Helper()
	require.NoError(t, unix.Bind(s.fd, s.sockaddr(at)))
	require.NoError(t, unix.Listen(s.fd, 16))
}

// fill writes more than the other side, which does not read, has room for: when the socket is closed, the
// kernel cannot end the connection yet.
func (s *testSocket) fill(t testing.TB) {
	t.Helper()
	require.NoError(t, unix.SetNonblock(s.fd, true))
	for err := error(nil); err == nil; {
		_, err = unix.Write(s.fd, make([]byte, 1<<16))
	}
}

func (s *testSocket) cookie(t testing.TB) uint64 {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	require.NoError(t, err)
	return cookie
}

func (s *testSocket) inode(t testing.TB) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(s.fd, &st))
	return st.Ino
}

func (s *testSocket) local(t testing.TB) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(s.fd)
	require.NoError(t, err)
	return sockaddr.AddrPort(sa)
}

// expected is what a listing should say of a socket that is open in this process only.
func (s *testSocket) expected(t testing.TB, conn *service, peers ...service) Socket {
	t.Helper()
	e := Socket{
		Protocol: s.protocol,
		Family:   s.family,
		State:    StateClose,
		Local:    s.local(t),
		NetNS:    s.netns,
		Cookie:   s.cookie(t),
		Inode:    s.inode(t),
		Owners:   []Process{self(t)},
	}
	// Not known before Linux 5.14, where nobody can ask for it.
	e.NetNS.Cookie, _ = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if conn != nil {
		e.State = StateEstablished
		e.Peer = conn.backend
		e.Conn = conn.tuple()
	}
	for _, p := range peers {
		e.Peers = append(e.Peers, *p.tuple())
	}
	return e
}

func (s service) tuple() *revnat.Tuple {
	return &revnat.Tuple{
		Peer: s.backend, Service: s.front, RevNATIndex: s.index, BackendID: s.backendID,
	}
}

func self(t testing.TB) Process {
	t.Helper()
	return process(t, os.Getpid())
}

func process(t testing.TB, id int) Process {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", id))
	require.NoError(t, err)
	return Process{id, strings.TrimSpace(string(comm))}
}

// assertSockets compares without regard to order, and checks the times instead of comparing them.
func assertSockets(t testing.TB, want, got []Socket) {
	t.Helper()
	for i := range got {
		tuples := got[i].Peers
		if got[i].Conn != nil {
			checkTime(t, got[i].Conn)
		}
		for j := range tuples {
			checkTime(t, &tuples[j])
		}
	}
	assert.ElementsMatch(t, want, got)
}

// checkTime checks that a tuple is a few seconds old, and sets the time to zero, and the age, which what is beside it decides.
func checkTime(t testing.TB, tuple *revnat.Tuple) {
	t.Helper()
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	age := time.Duration(now.Nano()) - tuple.Time
	assert.True(t, age >= 0 && age < time.Minute, "age of %v", tuple)
	tuple.Time, tuple.Age = 0, 0
}

func TestStatesAndFamiliesHaveNames(t *testing.T) {
	assert.Equal(t, "established", StateEstablished.String())
	assert.Equal(t, "close", StateClose.String())
	assert.Equal(t, "new-syn-recv", State(12).String())
	assert.Equal(t, "0", State(0).String())
	assert.Equal(t, "200", State(200).String())
	assert.Equal(t, "ipv4", IPv4.String())
	assert.Equal(t, "ipv6", IPv6.String())
	assert.Equal(t, "1", Family(1).String())
}
