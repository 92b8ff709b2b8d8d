// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/maplayout"
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
		if err := maplayout.Check(opened, lbmap.MapSpec(name), ErrLayout); err != nil {
			h.close()
			return hash{}, fmt.Errorf("%s: %w", path, err)
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

// ended tells an entry that a hook has ended from one that names a service; see legacy_has_ended in
// bpf/lib/legacy.h.
func ended(key *hashKey, value *hashValue) bool {
	return value.RevNat == 0 && value.Port == key.Port && value.Addr == key.Addr
}

// read returns the entries of both maps. One that is there all the time is in the result, and once only.
func (h hash) read() (keys []hashKey, values []hashValue, err error) {
	if h.v6 != nil {
		if keys, values, err = batch.Read[hashKey, hashValue](h.v6); err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", lbmap.ReverseSK6Map, err)
		}
	}
	if h.v4 == nil {
		return keys, values, nil
	}
	keys4, values4, err := batch.Read[hashKey4, hashValue4](h.v4)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", lbmap.ReverseSK4Map, err)
	}
	keys, values = slices.Grow(keys, len(keys4)), slices.Grow(values, len(values4))
	for i := range keys4 {
		keys = append(keys, keys4[i].key())
		values = append(values, values4[i].value())
	}
	return keys, values, nil
}

// lookup returns an entry, and whether there is one.
func (h hash) lookup(key *hashKey) (value hashValue, ok bool, err error) {
	if key.is4() {
		key4, value4 := key.v4(), hashValue4{}
		err = h.v4.Lookup(&key4, &value4)
		value = value4.value()
	} else {
		err = h.v6.Lookup(key, &value)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return hashValue{}, false, nil
	}
	return value, err == nil, err
}

// update writes an entry.
func (h hash) update(key *hashKey, value *hashValue, flags ebpf.MapUpdateFlags) error {
	if key.is4() {
		key4, value4 := key.v4(), value.v4()
		return h.v4.Update(&key4, &value4, flags)
	}
	return h.v6.Update(key, value, flags)
}

// delete removes entries, as far as they are there.
func (h hash) delete(keys []hashKey) error {
	var keys4 []hashKey4
	var keys6 []hashKey
	for i := range keys {
		if keys[i].is4() {
			keys4 = append(keys4, keys[i].v4())
		} else {
			keys6 = append(keys6, keys[i])
		}
	}
	if err := batch.Delete(h.v4, keys4); err != nil {
		return fmt.Errorf("deleting from %s: %w", lbmap.ReverseSK4Map, err)
	}
	if err := batch.Delete(h.v6, keys6); err != nil {
		return fmt.Errorf("deleting from %s: %w", lbmap.ReverseSK6Map, err)
	}
	return nil
}
