// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func FuzzParse(f *testing.F) {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6, 0} {
		b := make([]byte, responseSize)
		b[0] = family
		f.Add(b)
		f.Add(b[1:])
		f.Add(append(b, 1, 2, 3))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(b, unix.IPPROTO_TCP)
		if err != nil {
			require.Less(t, len(b), responseSize)
			return
		}
		require.True(t, s.Local.IsValid() && s.Remote.IsValid())
		require.Equal(t, int(b[0]), s.Family)
	})
}
