// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/revnat"
)

// overflowBatch is how many entries are read with one system call.
const overflowBatch = 4096

type overflowEntry struct {
	key   revnat.OverflowKey
	value revnat.OverflowValue
}

// readOverflow returns the entries of revsk_overflow. One that is there all the time is in the
// result, and once only: the kernel reads a bucket of the hash at a time, under its lock.
func readOverflow(m *ebpf.Map) ([]overflowEntry, error) {
	var all []overflowEntry
	var cursor ebpf.MapBatchCursor
	for size := overflowBatch; ; {
		keys := make([][revnat.OverflowKeySize]byte, size)
		values := make([][revnat.OverflowValueSize]byte, size)
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) {
			// A single bucket has more.
			size *= 2
			cursor = ebpf.MapBatchCursor{}
			all = nil
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("reading revsk_overflow: %w", err)
		}
		for i := range n {
			var e overflowEntry
			if err := e.key.UnmarshalBinary(keys[i][:]); err != nil {
				return nil, fmt.Errorf("reading revsk_overflow: %w", err)
			}
			if err := e.value.UnmarshalBinary(values[i][:]); err != nil {
				return nil, fmt.Errorf("reading revsk_overflow: %w", err)
			}
			all = append(all, e)
		}
		if err != nil {
			return all, nil
		}
	}
}
