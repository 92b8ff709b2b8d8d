// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/lbmap"
)

// hash is the legacy state: cilium_lb4_reverse_sk and cilium_lb6_reverse_sk.
type hash struct {
	v4, v6 *ebpf.Map
}

// openHash opens the pinned maps of a node that may not have a datapath of ours. Returns an error
// wrapping [ErrNoHash] if there is neither of them, or [ErrLayout].
func openHash(dir string) (hash, error) {
	var h hash
	for name, m := range map[string]**ebpf.Map{lbmap.ReverseSK4Map: &h.v4, lbmap.ReverseSK6Map: &h.v6} {
		path := filepath.Join(dir, name)
		// Absent is what is not at that path. Opening it may fail in the same words, for want of /proc.
		_, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var opened *ebpf.Map
		if err == nil {
			opened, err = ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		}
		if err != nil {
			h.close()
			return hash{}, fmt.Errorf("opening %s: %w", path, err)
		}
		*m = opened
		want := lbmap.MapSpec(name)
		if opened.Type() != want.Type || opened.KeySize() != want.KeySize || opened.ValueSize() != want.ValueSize {
			h.close()
			return hash{}, fmt.Errorf("%s: %w: is %v with keys of %d and values of %d bytes, needed is %v with %d and %d", path,
				ErrLayout, opened.Type(), opened.KeySize(), opened.ValueSize(), want.Type, want.KeySize, want.ValueSize)
		}
	}
	if h.v4 == nil && h.v6 == nil {
		return hash{}, fmt.Errorf("%s: %w", dir, ErrNoHash)
	}
	return h, nil
}

func (h hash) close() {
	for _, m := range h.maps() {
		m.Close()
	}
}

// maps are those that exist, by name.
func (h hash) maps() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	if h.v4 != nil {
		all[lbmap.ReverseSK4Map] = h.v4
	}
	if h.v6 != nil {
		all[lbmap.ReverseSK6Map] = h.v6
	}
	return all
}

// of returns the map that has the entries of a backend's family.
func (h hash) of(key lbmap.ReverseSKKey) *ebpf.Map {
	if key.Backend.Addr().Is4() {
		return h.v4
	}
	return h.v6
}

// ended tells an entry that a hook has ended from one that names a service; see legacy_has_ended in
// bpf/lib/legacy.h.
func ended(key lbmap.ReverseSKKey, value lbmap.ReverseSKValue) bool {
	return value.RevNat == 0 && value.Service == key.Backend
}

// read returns the entries of both maps. One that is there all the time is in the result.
func (h hash) read() (map[lbmap.ReverseSKKey]lbmap.ReverseSKValue, error) {
	all := make(map[lbmap.ReverseSKKey]lbmap.ReverseSKValue)
	if h.v4 != nil {
		err := readHash[[lbmap.ReverseSKKey4Size]byte, [lbmap.ReverseSKValue4Size]byte](h.v4, all,
			func(k *[lbmap.ReverseSKKey4Size]byte) []byte { return k[:] },
			func(v *[lbmap.ReverseSKValue4Size]byte) []byte { return v[:] })
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", lbmap.ReverseSK4Map, err)
		}
	}
	if h.v6 != nil {
		err := readHash[[lbmap.ReverseSKKey6Size]byte, [lbmap.ReverseSKValue6Size]byte](h.v6, all,
			func(k *[lbmap.ReverseSKKey6Size]byte) []byte { return k[:] },
			func(v *[lbmap.ReverseSKValue6Size]byte) []byte { return v[:] })
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", lbmap.ReverseSK6Map, err)
		}
	}
	return all, nil
}

func readHash[K, V any](m *ebpf.Map, into map[lbmap.ReverseSKKey]lbmap.ReverseSKValue, keyBytes func(*K) []byte, valueBytes func(*V) []byte) error {
	keys, values, err := batch.Read[K, V](m)
	if err != nil {
		return err
	}
	for i := range keys {
		var key lbmap.ReverseSKKey
		var value lbmap.ReverseSKValue
		if err := key.UnmarshalBinary(keyBytes(&keys[i])); err != nil {
			return err
		}
		if err := value.UnmarshalBinary(valueBytes(&values[i])); err != nil {
			return err
		}
		into[key] = value
	}
	return nil
}

// lookup returns an entry, and whether there is one.
func (h hash) lookup(key lbmap.ReverseSKKey) (value lbmap.ReverseSKValue, ok bool, err error) {
	err = h.of(key).Lookup(key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return value, false, nil
	}
	return value, err == nil, err
}

// delete removes an entry, if there is one.
func (h hash) delete(key lbmap.ReverseSKKey) error {
	err := h.of(key).Delete(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
