// SPDX-License-Identifier: Apache-2.0

package bpfiter

import (
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Types is what loading knows of the kernel's types, for all loads of the process: to read them takes longer than loading most
// iterators.
var Types = btf.NewCache()

// Load loads programs, with their own maps but for those that are given. It changes the spec.
//
// Variables can be read and written afterwards. The library makes them so if the kernel can map maps, which it asks once in a process,
// taking every failure of that call for a no, also one for want of descriptors. Every supported kernel can.
func Load(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*ebpf.Collection, error) {
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, ".") { // a section of variables
			m.Flags |= unix.BPF_F_MMAPABLE
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps, Cache: Types})
}
