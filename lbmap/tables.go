// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Tables are the maps that services are kept in. A field may be nil, for a map
// that is not there: a method that cannot do without it returns [ErrNoMap].
//
// Any number of readers may work while one writer does. Two writers, be it in
// two processes, may take the same backend id or reverse-NAT index.
type Tables struct {
	Services4, Services6 *ebpf.Map // cilium_lb{4,6}_services_v2
	Backends4, Backends6 *ebpf.Map // cilium_lb{4,6}_backends_v3
	RevNat4, RevNat6     *ebpf.Map // cilium_lb{4,6}_reverse_nat
	AffinityMatch        *ebpf.Map // cilium_lb_affinity_match
	SkipLB4, SkipLB6     *ebpf.Map // cilium_skip_lb{4,6}
	IPCache              *ebpf.Map // cilium_ipcache_v2
}

// fields returns where in t the maps are, by name.
func (t *Tables) fields() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		Services4Map:     &t.Services4,
		Services6Map:     &t.Services6,
		Backends4Map:     &t.Backends4,
		Backends6Map:     &t.Backends6,
		RevNat4Map:       &t.RevNat4,
		RevNat6Map:       &t.RevNat6,
		AffinityMatchMap: &t.AffinityMatch,
		SkipLB4Map:       &t.SkipLB4,
		SkipLB6Map:       &t.SkipLB6,
		IPCacheMap:       &t.IPCache,
	}
}

// each iterates over those of the named maps that t has.
func (t *Tables) each(names ...string) iter.Seq2[string, *ebpf.Map] {
	fields := t.fields()
	return func(yield func(string, *ebpf.Map) bool) {
		for _, name := range names {
			if m := *fields[name]; m != nil && !yield(name, m) {
				return
			}
		}
	}
}

// OpenTables opens the maps pinned in a directory, usually
// /sys/fs/bpf/tc/globals. Maps that are not pinned there stay nil, but the
// services and backends of at least one family must be there.
//
// Returns an error wrapping [ErrNoMap], or [ErrLayout] for a map whose type or
// sizes are not those of [MapSpec].
func OpenTables(dir string) (*Tables, error) {
	t := &Tables{}
	for name, field := range t.fields() {
		m, err := openMap(dir, name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening map %s: %w", name, err), t.Close())
		}
		*field = m
	}
	if (t.Services4 == nil || t.Backends4 == nil) && (t.Services6 == nil || t.Backends6 == nil) {
		return nil, errors.Join(fmt.Errorf("opening services in %s: %w", dir, ErrNoMap), t.Close())
	}
	return t, nil
}

func openMap(dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if err != nil {
		return nil, err
	}
	want := MapSpec(name)
	if m.Type() != want.Type || m.KeySize() != want.KeySize || m.ValueSize() != want.ValueSize {
		_ = m.Close()
		return nil, fmt.Errorf("%v with key %d, value %d, expected %v with key %d, value %d: %w",
			m.Type(), m.KeySize(), m.ValueSize(), want.Type, want.KeySize, want.ValueSize, ErrLayout)
	}
	return m, nil
}

// Close closes all maps. They stay pinned.
func (t *Tables) Close() error {
	var errs []error
	for _, field := range t.fields() {
		if *field != nil {
			errs = append(errs, (*field).Close())
			*field = nil
		}
	}
	return errors.Join(errs...)
}

// family is the maps of one address family, with the names that errors use.
type family struct {
	services, backends, revNat             *ebpf.Map
	servicesName, backendsName, revNatName string
}

func (t *Tables) family(v6 bool) family {
	if v6 {
		return family{
			t.Services6, t.Backends6, t.RevNat6,
			Services6Map, Backends6Map, RevNat6Map,
		}
	}
	return family{
		t.Services4, t.Backends4, t.RevNat4,
		Services4Map, Backends4Map, RevNat4Map,
	}
}

// present is the value in maps where only the presence of a key matters.
const present uint8 = 1

// add sets an entry of a map that may be nil.
func add(name string, m *ebpf.Map, key, value any) error {
	if m == nil {
		return fmt.Errorf("writing %s: %w", name, ErrNoMap)
	}
	return writeError(name, m.Update(key, value, ebpf.UpdateAny))
}

// remove deletes an entry of a map that may be nil.
func remove(name string, m *ebpf.Map, key any) error {
	if m == nil {
		return fmt.Errorf("writing %s: %w", name, ErrNoMap)
	}
	err := m.Delete(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("removing from %s: %w", name, ErrNotFound)
	}
	return writeError(name, err)
}

// writeError adds the name of the map to an error, and ErrFull where the kernel
// says so: E2BIG for a hash, ENOSPC for a trie.
func writeError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("writing %s: %w", name, ErrFull)
	}
	return fmt.Errorf("writing %s: %w", name, err)
}

// iterationAttempts is how often a map is read from the start that changes so
// much meanwhile that the kernel does not come to its end.
const iterationAttempts = 5

// readAll returns the contents of a hash map. A map that is nil is empty.
//
// When an entry is deleted at which the kernel stands, the kernel starts again
// from the first one; keys then come up twice, hence the map.
func readAll[K comparable, V any](name string, m *ebpf.Map) (map[K]V, error) {
	all := make(map[K]V)
	if m == nil {
		return all, nil
	}
	var err error
	for range iterationAttempts {
		clear(all)
		var key K
		var value V
		it := m.Iterate()
		for it.Next(&key, &value) {
			all[key] = value
		}
		if err = it.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return all, nil
}

// readKeys returns the keys of a map in which only they matter.
func readKeys[K comparable](name string, m *ebpf.Map) ([]K, error) {
	if m == nil {
		return nil, fmt.Errorf("reading %s: %w", name, ErrNoMap)
	}
	all, err := readAll[K, uint8](name, m)
	keys := make([]K, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	return keys, err
}
