// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"encoding"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/maplayout"
)

// bulk reads, writes and removes many entries of a map with one system call. Keys and values are one after the other,
// in the sizes of the map.
type bulk interface {
	read(m *ebpf.Map) (keys, values []byte, err error)
	// put and remove return how many entries they have done before an error.
	put(m *ebpf.Map, keys, values []byte) (int, error)
	remove(m *ebpf.Map, keys []byte) (int, error)
}

// bulkOf returns what handles the map with this name.
func bulkOf(name string) bulk {
	switch name {
	case Services4Map:
		return sized[[ServiceKey4Size]byte, [ServiceValueSize]byte]{}
	case Services6Map:
		return sized[[ServiceKey6Size]byte, [ServiceValueSize]byte]{}
	case Backends4Map:
		return sized[[BackendKeySize]byte, [BackendValue4Size]byte]{}
	case Backends6Map:
		return sized[[BackendKeySize]byte, [BackendValue6Size]byte]{}
	case RevNat4Map:
		return sized[[RevNatKeySize]byte, [RevNatValue4Size]byte]{}
	case RevNat6Map:
		return sized[[RevNatKeySize]byte, [RevNatValue6Size]byte]{}
	case AffinityMatchMap:
		return sized[[AffinityMatchKeySize]byte, [presenceSize]byte]{}
	case SkipLB4Map:
		return sized[[SkipLBKey4Size]byte, [presenceSize]byte]{}
	case SkipLB6Map:
		return sized[[SkipLBKey6Size]byte, [presenceSize]byte]{}
	}
	panic("no sizes for " + name)
}

// sized is bulk for keys K and values V, which are arrays of bytes.
type sized[K, V any] struct{}

func (sized[K, V]) read(m *ebpf.Map) (keys, values []byte, err error) {
	k, v, err := batch.Read[K, V](m)
	return flat(k), flat(v), err
}

func (sized[K, V]) put(m *ebpf.Map, keys, values []byte) (int, error) {
	return m.BatchUpdate(arrays[K](keys), arrays[V](values), nil)
}

func (sized[K, V]) remove(m *ebpf.Map, keys []byte) (int, error) {
	return m.BatchDelete(arrays[K](keys), nil)
}

// arrays and flat convert between bytes and arrays of them, which need no alignment.
func arrays[T any](b []byte) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(*new(T))))
}

func flat[T any](a []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(a))), len(a)*int(unsafe.Sizeof(*new(T))))
}

// decoder is a pointer to a key or value.
type decoder[T any] interface {
	*T
	encoding.BinaryUnmarshaler
}

// readAll calls each with every entry of a map. A map that is nil is empty. An entry that is there all
// the time comes up once; others may or may not.
func readAll[K, V any, PK decoder[K], PV decoder[V]](name string, m *ebpf.Map, each func(K, V)) error {
	if m == nil {
		return nil
	}
	keys, values, err := bulkOf(name).read(m)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	keySize, valueSize := int(m.KeySize()), int(m.ValueSize())
	for ; len(keys) > 0; keys, values = keys[keySize:], values[valueSize:] {
		var key K
		var value V
		err := errors.Join(PK(&key).UnmarshalBinary(keys[:keySize]), PV(&value).UnmarshalBinary(values[:valueSize]))
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		each(key, value)
	}
	return nil
}

// backendID is a key of cilium_lb{4,6}_backends_v3.
type backendID uint32

// MarshalBinary returns the key as it is in the map.
func (id backendID) MarshalBinary() ([]byte, error) {
	return hostOrder.AppendUint32(nil, uint32(id)), nil
}

// UnmarshalBinary reads a key from the map of either family.
func (id *backendID) UnmarshalBinary(data []byte) error {
	*id = backendID(hostOrder.Uint32(data))
	return nil
}

// presence is a value of a map where only the presence of a key matters.
type presence struct{}

// MarshalBinary returns a value that is not zero, for those who look.
func (presence) MarshalBinary() ([]byte, error) { return []byte{present}, nil }

// UnmarshalBinary accepts every value.
func (*presence) UnmarshalBinary([]byte) error { return nil }

// readKeys returns the keys of a map in which only they matter.
func readKeys[K any, PK decoder[K]](name string, m *ebpf.Map) ([]K, error) {
	if m == nil {
		return nil, fmt.Errorf("reading %s: %w", name, ErrNoMap)
	}
	var keys []K
	err := readAll[K, presence, PK](name, m, func(key K, _ presence) { keys = append(keys, key) })
	return keys, err
}

// writeError adds the name of the map to an error, and ErrFull where the kernel says so: E2BIG for a
// hash, ENOSPC for a trie, or ErrFrozen.
func writeError(name string, m *ebpf.Map, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("writing %s: %w", name, ErrFull)
	}
	return fmt.Errorf("writing %s: %w", name, maplayout.Frozen(m, err, ErrFrozen))
}
