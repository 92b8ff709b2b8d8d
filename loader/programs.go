// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Programs keeps the programs of a [Load], so that a later one by the same process which needs the same
// programs, on the same maps, does not have the kernel verify them again. That takes a second and more. The
// zero value is ready for use, by one call at a time.
type Programs struct {
	key  string
	coll *ebpf.Collection
}

// Close frees the programs; those that are attached stay attached.
func (p *Programs) Close() error {
	if p.coll != nil {
		p.coll.Close()
	}
	*p = Programs{}
	return nil
}

// load returns the programs of a spec, on these maps. They belong to p.
func (p *Programs) load(spec *ebpf.CollectionSpec, opened map[string]*ebpf.Map) (*ebpf.Collection, error) {
	key, err := programsKey(spec, opened)
	if err != nil || p.coll != nil && p.key == key {
		return p.coll, err
	}
	p.Close()
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: opened})
	if err != nil {
		return nil, err
	}
	p.key, p.coll = key, coll
	return coll, nil
}

// programsKey is the same for programs that are: which they are, their constants, and their maps.
func programsKey(spec *ebpf.CollectionSpec, opened map[string]*ebpf.Map) (string, error) {
	var b strings.Builder
	fmt.Fprint(&b, slices.Sorted(maps.Keys(spec.Programs)))
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		fmt.Fprintf(&b, " %s=%x", name, spec.Variables[name].Value)
	}
	for _, name := range slices.Sorted(maps.Keys(opened)) {
		id, err := mapID(opened[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " %s=%d", name, id)
	}
	return b.String(), nil
}
