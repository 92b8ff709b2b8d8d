// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"iter"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// everyKind begins a scene for each kind of socket, by default of TCP and UDP. They end together, and share the books: none
// of them may have a table.
func everyKind(t *testing.T, mode loader.Mode, protocols ...int) iter.Seq[*scene] {
	if protocols == nil {
		protocols = either
	}
	return func(yield func(*scene) bool) {
		first := 0 // number of a service: each has its own
		for _, f := range families {
			if f.domain == unix.AF_INET6 && !haveIPv6 {
				continue
			}
			for _, protocol := range protocols {
				s := newScene(t, mode, f, protocol)
				s.numbers = first
				first += 100
				if !yield(s) {
					return
				}
			}
		}
	}
}

func reload(t *testing.T, opts loader.Options) {
	t.Helper()
	if referenceObject != nil { // a load refuses to replace programs of others
		detachReference(t, opts)
	}
	dp, err := loader.Load(context.Background(), opts)
	require.NoError(t, err)
	require.NoError(t, dp.Close())
	if referenceObject != nil {
		require.NoError(t, runReference(opts))
	}
}

// A running datapath is replaced, over and over, while sockets connect: every one of them is
// translated, and its getpeername too.
func TestReplaceUnderTraffic(t *testing.T) {
	const workers = 2
	least, leastLoads := int64(scaled(20000)), scaled(5)
	type kind struct {
		*scene
		a *service
	}
	var kinds []kind
	for s := range everyKind(t, loader.ModeStorage) {
		kinds = append(kinds, kind{s, s.service()})
	}
	before := kinds[0].counters()
	var connects, missed atomic.Int64
	var enough atomic.Bool
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := 0; !enough.Load(); i++ {
				k := kinds[i%len(kinds)]
				if err := k.connectOnce(k.a); err != nil {
					missed.Add(1)
					t.Log(err)
				}
				connects.Add(1)
			}
		})
	}
	loads := 0
	for loads < leastLoads || connects.Load() < least {
		dp, err := loader.Load(context.Background(), options())
		if !assert.NoError(t, err) {
			break
		}
		assert.NoError(t, dp.Close())
		loads++
	}
	enough.Store(true)
	wg.Wait()
	t.Logf("%d connects beside %d loads", connects.Load(), loads)
	assert.Zero(t, missed.Load(), "connects that were not translated")
	c := kinds[0].counters()
	assert.EqualValues(t, connects.Load(), c.Translated-before.Translated)
	assert.EqualValues(t, connects.Load(), c.Stored-before.Stored)
	becomes(t, before.Released+uint64(connects.Load()), kinds[0].released, "tuples counted as released")
}

func (s *scene) connectOnce(a *service) error {
	x, err := newSocket(s.family, s.protocol)
	if err != nil {
		return err
	}
	defer x.close()
	if err := x.tryConnect(a.front); err != nil {
		return err
	}
	if !s.datagram() {
		// A reset instead of TIME_WAIT: there are not so many ports.
		if err := unix.SetsockoptLinger(x.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	return x.shows(a)
}

func TestReplaceKeepsWhatSocketsRemember(t *testing.T) {
	for _, test := range []struct {
		name    string
		replace func(t *testing.T, unhooked func())
	}{
		{"by load", func(t *testing.T, _ func()) { reload(t, options()) }},
		{"by unload and load", func(t *testing.T, unhooked func()) {
			require.NoError(t, loader.Unload(context.Background(), options(), false))
			unhooked()
			reload(t, options())
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
				t.Run(mode.String(), func(t *testing.T) { remembers(t, mode, test.replace) })
			}
		})
	}
}

func remembers(t *testing.T, mode loader.Mode, replace func(t *testing.T, unhooked func())) {
	type state struct {
		*scene
		a            *service
		conn, sender *socket
		q            string
	}
	var all []state
	for s := range everyKind(t, mode) {
		st := state{scene: s, a: s.service(), conn: s.socket()}
		st.conn.connect(st.a.front)
		if s.datagram() {
			st.sender = s.socket()
			st.q = s.queue(st.sender, st.a.front)
		}
		all = append(all, st)
	}
	replace(t, func() {
		for _, st := range all {
			same(t, st.a.backend, st.conn.peername(), "getpeername without hooks")
		}
	})
	for _, st := range all {
		st.connected(st.conn, st.a)
		if st.sender != nil {
			st.heard(st.sender, st.q, st.a.backend, st.a.front)
			st.asksService(st.sender, st.a)
		}
	}
}
