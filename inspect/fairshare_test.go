// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// However many sockets a process has, and in whatever order they come: nobody has a place while another with sockets left has two
// less.
func TestPlacesAreSharedFairly(t *testing.T) {
	for _, c := range []struct {
		places int
		has    map[int]int // sockets by process
		gets   map[int]int
	}{
		{places: 0, has: map[int]int{1: 3}, gets: map[int]int{}},
		{places: -1, has: map[int]int{1: 3}, gets: map[int]int{}},
		{places: 5, has: map[int]int{1: 3}, gets: map[int]int{1: 3}},
		{places: 3, has: map[int]int{1: 3}, gets: map[int]int{1: 3}},
		{places: 10, has: map[int]int{1: 5000, 2: 1}, gets: map[int]int{1: 9, 2: 1}},
		{places: 9, has: map[int]int{0: 5000, 1: 5000, 2: 2, 3: 1}, gets: map[int]int{0: 3, 1: 3, 2: 2, 3: 1}},
		{places: 4, has: map[int]int{1: 2, 2: 2, 3: 2, 4: 2}, gets: map[int]int{1: 1, 2: 1, 3: 1, 4: 1}},
	} {
		var sockets []*Termination
		total := 0
		for process, n := range c.has {
			for range n {
				s := &Termination{}
				if process != 0 {
					s.Socket.Owners = []Process{{ID: process}, {ID: 999}}
				}
				sockets = append(sockets, s)
			}
			total += n
		}
		for range 20 {
			rand.Shuffle(total, func(i, j int) { sockets[i], sockets[j] = sockets[j], sockets[i] })
			share := newFairShare(c.places)
			for _, s := range sockets {
				share.add(s)
			}
			gets := make(map[int]int)
			for process, of := range share.of {
				if len(of) > 0 {
					gets[process] = len(of)
				}
			}
			require.Equal(t, c.gets, gets, "%+v", c)
			require.Equal(t, total > max(c.places, 0), share.full)
		}
	}
}
