// SPDX-License-Identifier: Apache-2.0

package loader

// WithStep makes Load call f before every step that changes something.
func (o Options) WithStep(f func(name string) error) Options {
	o.step = f
	return o
}

// CountEntries counts the entries of a map.
var CountEntries = countEntries
