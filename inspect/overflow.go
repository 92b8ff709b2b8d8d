// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/revnat"
)

type overflowEntry struct {
	key   revnat.OverflowKey
	value revnat.OverflowValue
}

// readOverflow returns the entries of revsk_overflow. One that is there all the time is in the
// result, and once only.
func readOverflow(m *ebpf.Map) ([]overflowEntry, error) {
	keys, values, err := batch.Read[[revnat.OverflowKeySize]byte, [revnat.OverflowValueSize]byte](m)
	if err != nil {
		return nil, fmt.Errorf("reading revsk_overflow: %w", err)
	}
	all := make([]overflowEntry, len(keys))
	for i := range all {
		if err := all[i].key.UnmarshalBinary(keys[i][:]); err != nil {
			return nil, fmt.Errorf("reading revsk_overflow: %w", err)
		}
		if err := all[i].value.UnmarshalBinary(values[i][:]); err != nil {
			return nil, fmt.Errorf("reading revsk_overflow: %w", err)
		}
	}
	return all, nil
}
