// SPDX-License-Identifier: Apache-2.0

// Package maplayout compares pinned maps with what their users expect.
package maplayout

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Check returns an error wrapping different if the map's type, key size or value size is not the spec's.
func Check(m *ebpf.Map, want *ebpf.MapSpec, different error) error {
	if m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize {
		return nil
	}
	return fmt.Errorf("%w: is %v with keys of %d and values of %d bytes, needed is %v with %d and %d",
		different, m.Type(), m.KeySize(), m.ValueSize(), want.Type, want.KeySize, want.ValueSize)
}
