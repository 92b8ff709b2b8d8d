// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/revnat"
)

// A record that the iterator could write is decoded, or refused with an error; what is decoded has the tuples of the record.
func FuzzRecord(f *testing.F) {
	for _, n := range []int{1, 2, wholeTuples + revnat.Slots, 40} {
		r := make(record, socketSize+n*revnat.TupleSize)
		binary.NativeEndian.PutUint16(r[tuplesAt:], uint16(n))
		f.Add([]byte(r))
		for i := range n {
			t := r[socketSize+i*revnat.TupleSize:]
			copy(t, []byte{10: 0xff, 11: 0xff, 12: 10, 15: byte(i), 26: 0xff, 27: 0xff, 28: 10, 31: 1, 33: 80, 35: 53})
		}
		f.Add([]byte(r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := record(b)
		if len(r) < socketSize || r.tupleCount() < 1 || r.size() > len(r) {
			return // the reader asks for whole records
		}
		r = r[:r.size()]
		s, err := r.whole(nil)
		if err != nil {
			return
		}
		n := len(s.Peers)
		for _, tuple := range []*revnat.Tuple{s.Conn, s.Former} {
			if tuple != nil {
				require.NotZero(t, tuple.Peer.Port())
				n++
			}
		}
		require.LessOrEqual(t, n, r.tupleCount())
		s.Connection()
		for _, p := range s.Peers {
			require.NotZero(t, p.Peer.Port())
		}
	})
}
