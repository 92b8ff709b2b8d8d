// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A socket with more peers than slots keeps those in the slots that it sends to most.
func TestHotPeersComeToTheSlots(t *testing.T) {
	hold(t, udp, rule{name: "by sends", notLegacy: storesNothing, play: func(s *scene) {
		x := s.socket()
		for range 10 {
			s.asksService(x, s.service())
		}
		hot := s.services[7]
		inSlot := func() bool {
			for _, tuple := range x.peers().Tuples() {
				if tuple.Peer == hot.backend {
					return true
				}
			}
			return false
		}
		require.False(s, inSlot())
		for range 16 {
			s.asksService(x, hot)
		}
		assert.True(s, inSlot())
		assert.Equal(s, 10, x.tuples())
		for _, svc := range s.services {
			s.asksService(x, svc)
		}
	}})
	hold(t, udp, rule{name: "and a slot that becomes free is filled from the chain", notLegacy: storesNothing, play: func(s *scene) {
		x := s.socket()
		for range 5 {
			s.asksService(x, s.service())
		}
		first := x.peers().Tuples()[0].Peer
		s.asks(x, first, first, first)
		p := x.peers()
		assert.Len(s, p.Tuples(), 3)
		assert.EqualValues(s, 1, p.ChainLen)
	}})
}
