// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzInode(f *testing.F) {
	for _, s := range []string{"socket:[4711]", "socket:[]", "socket:[-1]", "socket:[18446744073709551616]", "net:[4026531840]", "/dev/null", "socket:[1]]", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		inode, ok := Inode(target, "socket")
		if !ok {
			return
		}
		again, ok := Inode(fmt.Sprintf("socket:[%d]", inode), "socket")
		require.True(t, ok)
		require.Equal(t, inode, again)
	})
}
