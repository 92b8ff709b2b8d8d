// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// changes writes entries and remembers what was there before, so that a call
// that fails half way can leave the maps as it found them.
type changes struct {
	done []change
}

type change struct {
	name string
	m    *ebpf.Map
	key  any
	old  []byte // nil if there was no such entry
}

// put sets an entry.
func (c *changes) put(name string, m *ebpf.Map, key, value any) error {
	if m == nil {
		return fmt.Errorf("writing %s: %w", name, ErrNoMap)
	}
	old, err := m.LookupBytes(key)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if err := add(name, m, key, value); err != nil {
		return err
	}
	c.done = append(c.done, change{name, m, key, old})
	return nil
}

// remove deletes an entry, if it is there and the map too.
func (c *changes) remove(name string, m *ebpf.Map, key any) error {
	if m == nil {
		return nil
	}
	old, err := m.LookupBytes(key)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if old == nil {
		return nil
	}
	if err := remove(name, m, key); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	c.done = append(c.done, change{name, m, key, old})
	return nil
}

// undo restores what was there, last change first. It goes on after an error,
// to restore as much as it can.
func (c *changes) undo() error {
	var errs []error
	for _, ch := range slices.Backward(c.done) {
		var err error
		if ch.old == nil {
			err = remove(ch.name, ch.m, ch.key)
		} else {
			err = add(ch.name, ch.m, ch.key, ch.old)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("undoing: %w", err))
		}
	}
	c.done = nil
	return errors.Join(errs...)
}
