// SPDX-License-Identifier: Apache-2.0

// Package batch reads, fills and empties large hash maps with few system calls. Minimum kernel: Linux 5.6.
package batch

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// size is how many entries go with one system call.
const size = 4096

// Read returns the entries of a hash. K and V are arrays of bytes, or structs without pointers, of the
// sizes of its keys and values.
//
// One that is there all the time is in the result, and once only: the kernel reads a bucket of the hash
// at a time, under its lock. Others may be or not.
func Read[K, V any](m *ebpf.Map) (keys []K, values []V, err error) {
	var cursor ebpf.MapBatchCursor
	for n := size; ; {
		k, v := make([]K, n), make([]V, n)
		read, err := m.BatchLookup(&cursor, k, v, nil)
		if errors.Is(err, unix.ENOSPC) {
			// A single bucket has more.
			n *= 2
			cursor = ebpf.MapBatchCursor{}
			keys, values = nil, nil
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil, err
		}
		keys, values = append(keys, k[:read]...), append(values, v[:read]...)
		if err != nil {
			return keys, values, nil
		}
	}
}

// Write sets entries of a map, of whatever kind.
func Write[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(size, len(keys))
		if _, err := m.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			return err
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

// Delete removes entries of a map, as far as they are there.
func Delete[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n := min(size, len(keys))
		deleted, err := m.BatchDelete(keys[:n], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			// The kernel stops there.
			keys = keys[deleted+1:]
			continue
		}
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}
