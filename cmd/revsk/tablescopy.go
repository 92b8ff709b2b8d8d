// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/lbmap"
)

// copyTables copies the maps that make up services into new ones of the same size, which vanish when
// they are closed.
func copyTables(from *lbmap.Tables) (*lbmap.Tables, error) {
	if err := unlimitMemory(); err != nil {
		return nil, err
	}
	to := new(lbmap.Tables)
	for _, pair := range []struct {
		to   **ebpf.Map
		from *ebpf.Map
	}{
		{&to.Services4, from.Services4},
		{&to.Services6, from.Services6},
		{&to.Backends4, from.Backends4},
		{&to.Backends6, from.Backends6},
		{&to.RevNat4, from.RevNat4},
		{&to.RevNat6, from.RevNat6},
		{&to.AffinityMatch, from.AffinityMatch},
	} {
		if pair.from == nil {
			continue
		}
		m, err := copyMap(pair.from)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("copying %v for a dry run: %w", pair.from, err), to.Close())
		}
		*pair.to = m
	}
	return to, nil
}

func copyMap(from *ebpf.Map) (*ebpf.Map, error) {
	info, err := from.Info()
	if err != nil {
		return nil, err
	}
	to, err := ebpf.NewMap(&ebpf.MapSpec{
		Type:       from.Type(),
		KeySize:    from.KeySize(),
		ValueSize:  from.ValueSize(),
		MaxEntries: from.MaxEntries(),
		Flags:      info.Flags,
	})
	if err != nil {
		return nil, err
	}
	var key, value []byte
	it := from.Iterate()
	for it.Next(&key, &value) {
		if err := to.Put(key, value); err != nil {
			return nil, errors.Join(err, to.Close())
		}
	}
	if err := it.Err(); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}
