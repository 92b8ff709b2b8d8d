// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"slices"
	"testing"
)

// What a program that runs before ours has rejected changes nothing.
func TestRejected(t *testing.T) {
	var datagrams, all []rule
	for _, m := range []struct {
		name string
		mode mode
	}{{"storage", storage}, {"dual", dual}, {"mirror", mirror}, {"legacy", legacy}} {
		in := func(name string, play func(s *scene)) rule {
			return inMode(m.mode, rule{name + " in mode " + m.name, func(s *scene) {
				s.mayLeak = m.mode == legacy
				play(s)
			}})[0]
		}
		all = append(all,
			in("a connect to a service", func(s *scene) {
				s.keeps(func() { s.connect(s.tuple(1, 1)) })
			}),
			in("a connect to another service", func(s *scene) {
				s.connect(s.tuple(1, 1))
				s.keeps(func() { s.connect(s.tuple(2, 2)) })
			}),
			in("a connect to the backend", func(s *scene) {
				s.connect(s.tuple(1, 1))
				s.keeps(func() { s.connectDirect(s.family.backend(1)) })
			}),
		)
		datagrams = append(datagrams,
			in("a first send", func(s *scene) {
				s.keeps(func() { s.send(s.tuple(1, 1)) })
			}),
			in("a send after the mode was switched", func(s *scene) {
				s.setMode(storage)
				s.send(s.tuple(1, 1))
				s.setMode(m.mode)
				s.keeps(func() { s.send(s.tuple(1, 1)) })
			}),
			in("a send to the same again, later", func(s *scene) {
				s.send(s.tuple(1, 1).at(1000))
				s.keeps(func() { s.send(s.tuple(1, 1).at(2000)) })
			}),
			in("a send to the same peer by another service", func(s *scene) {
				s.send(s.tuple(1, 1))
				s.keeps(func() { s.send(s.tuple(2, 1)) })
			}),
			in("a send to the backend", func(s *scene) {
				s.send(s.tuple(1, 1))
				s.keeps(func() { s.sendDirect(s.family.backend(1)) })
			}),
		)
	}
	holdForAll(t, all...)
	holdForDatagrams(t, datagrams...)
}

// keeps demands that rejected calls change nothing.
func (s *scene) keeps(calls func()) {
	s.Helper()
	before := s.hash()
	s.isRejected = true
	s.unchangedBy("a rejected call", calls)
	s.isRejected = false
	if after := s.hash(); !slices.Equal(after, before) {
		s.Errorf("the legacy maps held %x, and hold %x", before, after)
	}
}
