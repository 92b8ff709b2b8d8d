// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Names of the maps, which are also the names of their pins in
// <bpffs>/tc/globals.
const (
	Services4Map     = "cilium_lb4_services_v2"
	Services6Map     = "cilium_lb6_services_v2"
	Backends4Map     = "cilium_lb4_backends_v3"
	Backends6Map     = "cilium_lb6_backends_v3"
	RevNat4Map       = "cilium_lb4_reverse_nat"
	RevNat6Map       = "cilium_lb6_reverse_nat"
	Affinity4Map     = "cilium_lb4_affinity"
	Affinity6Map     = "cilium_lb6_affinity"
	AffinityMatchMap = "cilium_lb_affinity_match"
	SkipLB4Map       = "cilium_skip_lb4"
	SkipLB6Map       = "cilium_skip_lb6"
	ReverseSK4Map    = "cilium_lb4_reverse_sk"
	ReverseSK6Map    = "cilium_lb6_reverse_sk"
	IPCacheMap       = "cilium_ipcache_v2"
	MetricsMap       = "cilium_metrics"
	Health4Map       = "cilium_lb4_health"
	Health6Map       = "cilium_lb6_health"
)

// Sizes in bytes of the keys and values that differ between the families.
const (
	ServiceKey4Size     = 12
	ServiceKey6Size     = 24
	BackendValue4Size   = 12
	BackendValue6Size   = 24
	RevNatValue4Size    = 6
	RevNatValue6Size    = 18
	AffinityKey4Size    = 16
	AffinityKey6Size    = 24
	SkipLBKey4Size      = 16
	SkipLBKey6Size      = 32
	ReverseSKKey4Size   = 16
	ReverseSKKey6Size   = 32
	ReverseSKValue4Size = 8
	ReverseSKValue6Size = 20
)

// Sizes in bytes of the keys and values that are the same in both families.
const (
	ServiceValueSize     = 12
	BackendKeySize       = 4
	RevNatKeySize        = 2
	AffinityValueSize    = 16
	AffinityMatchKeySize = 8
	IPCacheKeySize       = 24
	IPCacheValueSize     = 24
)

// presenceSize is the size of the values of cilium_lb_affinity_match and
// cilium_skip_lb{4,6}, where only the presence of the key matters.
const presenceSize = 1

// MapSpec returns the shape that Cilium gives the named map by default: type,
// key and value size, flags and number of entries. It returns nil for a name
// that it does not know. The caller may change the result.
//
// A pinned map may have other flags and another number of entries, because both
// can be configured; type and sizes are fixed.
func MapSpec(name string) *ebpf.MapSpec {
	const (
		lazy     = unix.BPF_F_NO_PREALLOC
		lazyRO   = unix.BPF_F_NO_PREALLOC | unix.BPF_F_RDONLY_PROG
		services = 65536
		skips    = 100
		sockets  = 262144
		prefixes = 512000
		counters = 1024
	)
	spec := func(t ebpf.MapType, key, value, entries, flags uint32) *ebpf.MapSpec {
		return &ebpf.MapSpec{
			Name: name, Type: t, KeySize: key, ValueSize: value, MaxEntries: entries, Flags: flags,
		}
	}

	switch name {
	case Services4Map:
		return spec(ebpf.Hash, ServiceKey4Size, ServiceValueSize, services, lazyRO)
	case Services6Map:
		return spec(ebpf.Hash, ServiceKey6Size, ServiceValueSize, services, lazyRO)
	case Backends4Map:
		return spec(ebpf.Hash, BackendKeySize, BackendValue4Size, services, lazy)
	case Backends6Map:
		return spec(ebpf.Hash, BackendKeySize, BackendValue6Size, services, lazy)
	case RevNat4Map:
		return spec(ebpf.Hash, RevNatKeySize, RevNatValue4Size, services, lazy)
	case RevNat6Map:
		return spec(ebpf.Hash, RevNatKeySize, RevNatValue6Size, services, lazy)
	case Affinity4Map:
		return spec(ebpf.LRUHash, AffinityKey4Size, AffinityValueSize, services, 0)
	case Affinity6Map:
		return spec(ebpf.LRUHash, AffinityKey6Size, AffinityValueSize, services, 0)
	case AffinityMatchMap:
		return spec(ebpf.Hash, AffinityMatchKeySize, presenceSize, services, lazyRO)
	case SkipLB4Map:
		return spec(ebpf.Hash, SkipLBKey4Size, presenceSize, skips, lazyRO)
	case SkipLB6Map:
		return spec(ebpf.Hash, SkipLBKey6Size, presenceSize, skips, lazyRO)
	case ReverseSK4Map:
		return spec(ebpf.LRUHash, ReverseSKKey4Size, ReverseSKValue4Size, sockets, 0)
	case ReverseSK6Map:
		return spec(ebpf.LRUHash, ReverseSKKey6Size, ReverseSKValue6Size, sockets, 0)
	case IPCacheMap:
		return spec(ebpf.LPMTrie, IPCacheKeySize, IPCacheValueSize, prefixes, lazyRO)
	case MetricsMap:
		return spec(ebpf.PerCPUHash, 8, 16, counters, lazy)
	}
	return nil
}
