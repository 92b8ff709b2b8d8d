// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// One socket that talks to any number of services: those that its slots are for, those beyond, and
// so many that only a large table can hold them.
func TestManyServicesOnOneSocket(t *testing.T) {
	counts := []int{1, 2, 4, 5, 8, 64, 1000}
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) {
			holdIn(t, mode, unix.IPPROTO_UDP, func(s *scene) {
				all := s.publishMany(scaled(slices.Max(counts)))
				for _, n := range counts {
					if n > len(all) {
						n = len(all)
					}
					// Not a test of its own: all use the same services.
					s.Log(n, "services")
					s.talksToMany(all[:n])
				}
			})
		})
	}
}

func (s *scene) talksToMany(all []*service) {
	s.Helper()
	x := s.socket()
	defer x.close()
	// One datagram takes less than 2 KB.
	require.NoError(s, unix.SetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2048*(len(all)+16)))
	reversed := slices.Clone(all)
	slices.Reverse(reversed)

	// One at a time, in order and in reverse order; then all at once.
	for _, svc := range all {
		s.asksService(x, svc)
	}
	require.Equal(s, len(all), x.tuples())
	for _, svc := range reversed {
		s.asksService(x, svc)
	}
	s.asksAll(x, all, nil)
	s.asksAll(x, reversed, nil)
	require.Equal(s, len(all), x.tuples())
	if s.mode == loader.ModeDual {
		require.Equal(s, len(all), s.hashEntries())
	}

	// Half of the services become others while their answers are under way: what was asked is what answers.
	s.asksAll(x, all, func() {
		for i, svc := range all {
			if i%2 == 1 {
				s.delete(svc)
				svc.revNat += 10000
				s.publish(svc)
			}
		}
	})
	require.Equal(s, len(all), x.tuples(), "reads drop nothing")
	s.asksAll(x, all, nil)
	s.asksAll(x, reversed, nil)
	for _, svc := range all {
		s.asksService(x, svc)
	}

	// Every third is now sent to directly, which ends the mapping wherever it is.
	direct := 0
	for i, svc := range all {
		if i%3 == 0 {
			s.asks(x, svc.backend, svc.backend, svc.backend)
			direct++
		}
	}
	require.Equal(s, len(all)-direct, x.tuples())
	shuffled := slices.Clone(all)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for _, svc := range shuffled {
		s.asksService(x, svc)
	}
	require.Equal(s, len(all), x.tuples())

	x.close()
	s.balance()
}

// asksAll sends to all services before it receives the first answer. Between, it does what is to
// happen while the answers are queued.
func (s *scene) asksAll(x *socket, all []*service, between func()) {
	s.Helper()
	asked := make(map[string]*service)
	for _, svc := range all {
		q := s.question()
		asked[q] = svc
		x.sendTo(svc.front, q)
	}
	if between != nil {
		require.Eventually(s, func() bool { return queued(s, x) == len(all) }, patience, 10*tick)
		between()
	}
	for range all {
		reply, from := x.receive()
		q, at := split(reply)
		svc := asked[q]
		require.NotNil(s, svc, "an answer to %q, which was not asked or answered twice", q)
		delete(asked, q)
		same(s, svc.backend, at, "the server that answered")
		same(s, svc.front, from, fmt.Sprintf("source of the answer to %q", q))
	}
	assert.Empty(s, asked)
}

// publishMany writes services for any protocol.
func (s *scene) publishMany(n int) []*service {
	s.Helper()
	var all []*service
	s.Cleanup(func() {
		for _, svc := range all {
			s.delete(svc)
		}
	})
	for i := range n {
		svc := &service{
			front:   netip.AddrPortFrom(sandbox.Numbered(s.family.services, 1000+i), 53),
			backend: s.backendAt(i),
			revNat:  uint16(s.numbers + 1000 + i),
		}
		s.publish(svc)
		all = append(all, svc)
	}
	return all
}
