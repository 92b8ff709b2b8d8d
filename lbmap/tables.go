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

	"github.com/revsk/revsk/internal/maplayout"
)

// Tables are the maps that hold services. A field is nil if the map does not
// exist; a method that needs it then returns [ErrNoMap].
//
// Tables read services; a [Writer] writes them. Any number of goroutines and
// processes may read while one writes. Close must not be called at the same
// time as another method.
type Tables struct {
	Services4, Services6 *ebpf.Map // cilium_lb{4,6}_services_v2
	Backends4, Backends6 *ebpf.Map // cilium_lb{4,6}_backends_v3
	RevNat4, RevNat6     *ebpf.Map // cilium_lb{4,6}_reverse_nat
	AffinityMatch        *ebpf.Map // cilium_lb_affinity_match
	SkipLB4, SkipLB6     *ebpf.Map // cilium_skip_lb{4,6}
	IPCache              *ebpf.Map // cilium_ipcache_v2

	closed bool
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

// named returns the map of services, backends or reverse-NAT indexes with this
// name.
func (t *Tables) named(name string) *ebpf.Map { return *t.fields()[name] }

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
		// Absent is what is not at that path. Opening it may fail in the same words.
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		m, err := openMap(dir, name)
		if errors.Is(err, os.ErrNotExist) {
			err = errors.New(err.Error())
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
	path := filepath.Join(dir, name)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, unix.EROFS) {
		m, err = ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	}
	if err != nil {
		return nil, err
	}
	if err := maplayout.Check(m, MapSpec(name), ErrLayout); err != nil {
		_ = m.Close()
		return nil, err
	}
	return m, nil
}

// check returns an error if no map with services is open.
func (t *Tables) check() error {
	switch {
	case t == nil || t.closed:
		return ErrClosed
	case t.Services4 == nil && t.Services6 == nil:
		return fmt.Errorf("reading services: %w", ErrNoMap)
	}
	return nil
}

// Close closes all maps. They stay pinned. Closing nil, or twice, does nothing.
func (t *Tables) Close() error {
	if t == nil {
		return nil
	}
	t.closed = true
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
	f := family{
		t.Services4, t.Backends4, t.RevNat4,
		servicesName(v6), backendsName(v6), revNatName(v6),
	}
	if v6 {
		f.services, f.backends, f.revNat = t.Services6, t.Backends6, t.RevNat6
	}
	return f
}

func servicesName(v6 bool) string {
	if v6 {
		return Services6Map
	}
	return Services4Map
}

func backendsName(v6 bool) string {
	if v6 {
		return Backends6Map
	}
	return Backends4Map
}

func revNatName(v6 bool) string {
	if v6 {
		return RevNat6Map
	}
	return RevNat4Map
}

// present is the value in maps where only the presence of a key matters.
const present uint8 = 1

// put sets an entry of a map that may be nil.
func put(name string, m *ebpf.Map, key, value any) error {
	if m == nil {
		return fmt.Errorf("writing %s: %w", name, ErrNoMap)
	}
	return writeError(name, m, m.Update(key, value, ebpf.UpdateAny))
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
	return writeError(name, m, err)
}
