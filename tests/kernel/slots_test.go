// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSlots(t *testing.T) {
	hold(t, udp, rule{name: "a slot that becomes free takes the next peer", notLegacy: storesNothing, play: func(s *scene) {
		x := s.socket()
		for range 5 {
			s.asksService(x, s.service())
		}
		first := x.peers().Tuples()[0].Peer
		s.asks(x, first, first, first)
		p := x.peers()
		assert.Len(s, p.Tuples(), 2)
		assert.EqualValues(s, 2, p.TableCount)
		s.asksService(x, s.service())
		p = x.peers()
		assert.Len(s, p.Tuples(), 3)
		assert.EqualValues(s, 2, p.TableCount)
	}})
}
