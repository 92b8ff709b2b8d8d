// SPDX-License-Identifier: Apache-2.0

// Package batch reads, fills and empties large hash maps with few system calls. Minimum kernel: Linux 5.6.
package batch

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// size is how many entries go with one system call. A variable for tests.
var size = 4096

// Each calls f with the entries of a hash or an array. K and V are arrays of bytes, or structs without pointers, of the
// sizes of its keys and values.
//
// One that is there all the time is among them, and once only: the kernel reads a bucket of the hash
// at a time, under its lock. Others may be or not.
func Each[K, V any](m *ebpf.Map, f func(K, V)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, size), make([]V, size)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) {
			// A single bucket has more: the kernel goes on with that one.
			keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			f(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}

// Read returns the entries that [Each] calls its function with.
func Read[K, V any](m *ebpf.Map) (keys []K, values []V, err error) {
	err = Each(m, func(k K, v V) { keys, values = append(keys, k), append(values, v) })
	return keys, values, err
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
