// SPDX-License-Identifier: Apache-2.0

// Package maplayout compares pinned maps with what their users expect.
package maplayout

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Check returns an error wrapping different if the map's type, key size or value size is not the spec's.
func Check(m *ebpf.Map, want *ebpf.MapSpec, different error) error {
	if m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize {
		return nil
	}
	return fmt.Errorf("%w: is %v with keys of %d and values of %d bytes, needed is %v with %d and %d",
		different, m.Type(), m.KeySize(), m.ValueSize(), want.Type, want.KeySize, want.ValueSize)
}

// Frozen returns the error of a write to a map, or frozen if the kernel has refused it because another process has
// frozen the map: it says EPERM, as where a capability is missing.
func Frozen(m *ebpf.Map, err, frozen error) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if info, infoErr := m.Info(); infoErr == nil && info.Frozen() {
		return frozen
	}
	return err
}
