// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/lbmap"
)

// A key of the hash is the same in this package and in lbmap.
func FuzzHashKey(f *testing.F) {
	f.Add(uint64(1), []byte{10, 0, 0, 1}, uint16(0x3500))
	f.Add(^uint64(0), []byte{0xfd, 15: 1}, uint16(0xffff))
	f.Add(uint64(0), []byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}, uint16(0))
	f.Fuzz(func(t *testing.T, cookie uint64, addr []byte, port uint16) {
		var k hashKey
		switch len(addr) {
		case 4:
			k4 := hashKey4{Cookie: cookie, Addr: [4]byte(addr), Port: port}
			k = k4.key()
			require.True(t, k.is4())
			require.Equal(t, k4, k.v4())
		case 16:
			k = hashKey{Cookie: cookie, Addr: [16]byte(addr), Port: port}
		default:
			return
		}
		exported := k.exported()
		require.Equal(t, cookie, exported.Cookie)
		b, err := exported.MarshalBinary()
		require.NoError(t, err)
		var again lbmap.ReverseSKKey
		require.NoError(t, again.UnmarshalBinary(b))
		require.Equal(t, exported, again)
	})
}

func FuzzParseEngine(f *testing.F) {
	for _, s := range []string{"auto", "iter", "pidfd", "", "AUTO", "auto\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := ParseEngine(s); err == nil {
			require.Equal(t, s, string(e))
		}
	})
}
