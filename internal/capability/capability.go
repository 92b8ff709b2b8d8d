// SPDX-License-Identifier: Apache-2.0

// Package capability reads which capabilities the calling thread has.
package capability

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities.
type Set [2]unix.CapUserData

// Held returns the capabilities of the calling thread.
func Held() (Set, error) {
	var s Set
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &s[0]); err != nil {
		return Set{}, fmt.Errorf("reading the capabilities of this process: %w", err)
	}
	return s, nil
}

// Has tells whether a capability, such as [unix.CAP_BPF], is effective.
func (s Set) Has(capability int) bool {
	return s[capability/32].Effective&(1<<(capability%32)) != 0
}
