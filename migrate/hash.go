// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// each calls f with the entries of both maps. One that is there all the time is among them, and once only.
func (h hash) each(f func(hashKey, hashValue)) error {
	if h.v6 != nil {
		if err := batch.Each(h.v6, f); err != nil {
			return fmt.Errorf("reading %s: %w", lbmap.ReverseSK6Map, err)
		}
	}
	if h.v4 == nil {
		return nil
	}
	err := batch.Each(h.v4, func(k hashKey4, v hashValue4) { f(k.key(), v.value()) })
	if err != nil {
		return fmt.Errorf("reading %s: %w", lbmap.ReverseSK4Map, err)
	}
	return nil
}

// lookup returns an entry, and whether there is one.
func (h hash) lookup(key *hashKey) (value hashValue, ok bool, err error) {
	if key.is4() && h.v4 == nil || !key.is4() && h.v6 == nil {
		return hashValue{}, false, nil
	}
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

// write writes entries.
func (h hash) write(keys []hashKey, values []hashValue) error {
	var keys4 []hashKey4
	var values4 []hashValue4
	var keys6 []hashKey
	var values6 []hashValue
	for i := range keys {
		if keys[i].is4() {
			keys4, values4 = append(keys4, keys[i].v4()), append(values4, values[i].v4())
		} else {
			keys6, values6 = append(keys6, keys[i]), append(values6, values[i])
		}
	}
	if err := batch.Write(h.v4, keys4, values4); err != nil {
		return fmt.Errorf("writing to %s: %w", lbmap.ReverseSK4Map, maplayout.Frozen(h.v4, err, lbmap.ErrFrozen))
	}
	if err := batch.Write(h.v6, keys6, values6); err != nil {
		return fmt.Errorf("writing to %s: %w", lbmap.ReverseSK6Map, maplayout.Frozen(h.v6, err, lbmap.ErrFrozen))
	}
	return nil
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
		return fmt.Errorf("deleting from %s: %w", lbmap.ReverseSK4Map, maplayout.Frozen(h.v4, err, lbmap.ErrFrozen))
	}
	if err := batch.Delete(h.v6, keys6); err != nil {
		return fmt.Errorf("deleting from %s: %w", lbmap.ReverseSK6Map, maplayout.Frozen(h.v6, err, lbmap.ErrFrozen))
	}
	return nil
}
