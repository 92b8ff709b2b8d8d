// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/lockedsocket"
)

// A process that keeps a socket of its own locked does not keep those of others from being ended, nor from the end itself what
// is to be ended.
func TestEndsOthersBesideALockedSocket(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		s := g.service()
		// A TCP socket blocks the iterator over TCP sockets; sending on it is what keeps it locked.
		stranger := open(g.T, IPv4, tcp[0])
		stranger.listen(g.T, netip.MustParseAddrPort("127.0.0.1:0"))
		bystander := open(g.T, IPv4, tcp[0])
		bystander.connect(g.T, stranger.local(g.T))
		release := lockedsocket.Lock(g, bystander.fd)
		victims := []*testSocket{g.connected(s.front), g.connected(s.front)}
		begin := time.Now()
		g.terminate(s.backend, victims...)
		require.Less(g, time.Since(begin), 10*time.Second)
		release()
	})
}

func TestALockedSocketIsLeftAlone(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		if g.family == IPv6 {
			return // nothing of it depends on the family, and it takes seconds
		}
		s := g.service()
		before := runtime.NumGoroutine()
		locked, other := g.connected(s.front), g.connected(s.front)
		release := lockedsocket.Lock(g, locked.fd)
		begin := time.Now()
		report, err := g.end(g.options(s.backend))
		require.NoError(g, err)
		require.Less(g, time.Since(begin), 30*time.Second)
		assert.Equal(g, inodes(g.T, []*testSocket{other}), reported(report, OutcomeDestroyed))
		assert.Equal(g, inodes(g.T, []*testSocket{locked}), reported(report, OutcomeFailed))
		for _, one := range report.Sockets {
			if one.Outcome == OutcomeFailed {
				assert.ErrorIs(g, one.Err, ErrLocked)
			}
		}
		release()
		report, err = g.end(g.options(s.backend))
		require.NoError(g, err)
		assert.Equal(g, inodes(g.T, []*testSocket{locked}), reported(report, OutcomeDestroyed))
		require.Equal(g, unix.ECONNABORTED, locked.error(g.T))
		// And nothing waits any more.
		for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			require.False(g, time.Now().After(deadline), "something still waits")
		}
	})
}
