// SPDX-License-Identifier: Apache-2.0

package loader

import "github.com/cilium/ebpf"

// WithStep makes Load call f before every step that changes something.
func (o Options) WithStep(f func(name string) error) Options {
	o.step = f
	return o
}

// CountEntries counts the entries of a map.
var CountEntries = countEntries

// WithBuild makes calls use other programs than those of this build.
func (o Options) WithBuild(build func() (*ebpf.CollectionSpec, error)) Options {
	o.build = build
	return o
}
