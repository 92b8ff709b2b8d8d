// SPDX-License-Identifier: Apache-2.0

package blocked

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/lockedsocket"
	"github.com/revsk/revsk/internal/sockaddr"
)

var errOfCall = errors.New("of the call")

func TestACallThatEndsIsWaitedFor(t *testing.T) {
	var calls Calls
	freed := 0
	free := func() { freed++ }
	require.NoError(t, calls.Do("a", free, func() error { return nil }))
	require.ErrorIs(t, calls.Do("a", free, func() error { return errOfCall }), errOfCall)
	// It sleeps, which is not to be blocked; or works.
	require.NoError(t, calls.Do("a", free, func() error { time.Sleep(looks*lookEvery + time.Second); return nil }))
	require.NoError(t, calls.Do("a", free, func() error {
		for begin := time.Now(); time.Since(begin) < looks*lookEvery+time.Second; {
		}
		return nil
	}))
	require.Equal(t, 4, freed)
}

func TestACallThatIsBlockedIsGivenUp(t *testing.T) {
	var calls Calls
	var freed atomic.Int32
	free := func() { freed.Add(1) }
	fd := connected(t)
	release := lockedsocket.Lock(t, fd)
	ended := make(chan struct{})
	begin := time.Now()
	require.ErrorIs(t, calls.Do("a", free, func() error {
		defer close(ended)
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}), ErrLocked)
	require.Less(t, time.Since(begin), 3*looks*lookEvery)
	begin = time.Now()
	require.ErrorIs(t, calls.Do("a", free, func() error { t.Error("another is begun"); return nil }), ErrLocked)
	require.Less(t, time.Since(begin), looks*lookEvery)
	require.NoError(t, calls.Do("b", free, func() error { return nil }))
	require.True(t, Waiting())
	require.EqualValues(t, 2, freed.Load()) // of what was not begun, and of another
	release()
	<-ended
	require.Eventually(t, func() bool { return calls.Do("a", free, func() error { return nil }) == nil }, 10*time.Second, time.Millisecond)
	require.False(t, Waiting())
}

// connected is a TCP socket that is connected to another.
func connected(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Connect(fd, sockaddr.Of(unix.AF_INET, netip.MustParseAddrPort(l.Addr().String()))))
	return fd
}
