// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Of each socket so many processes are kept, and each of them once.
func TestOwnersThatAreKept(t *testing.T) {
	const socket, other = uint64(1) << 32, uint64(2) << 32
	for most, want := range map[int][]uint64{
		0: {socket | 1, socket | 2, socket | 3, other | 1, other | 9},
		1: {socket | 1, other | 1},
		2: {socket | 1, socket | 2, other | 1, other | 9},
		9: {socket | 1, socket | 2, socket | 3, other | 1, other | 9},
	} {
		table := ownerTable{most: most, files: []uint64{other | 9, socket | 3, socket | 1, other | 1, socket | 1, socket | 2, other | 1}}
		table.thin()
		require.Equal(t, want, table.files, most)
		table.thin()
		require.Equal(t, want, table.files, most)
	}
}
