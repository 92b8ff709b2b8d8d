// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"time"
)

// progressEvery is how often a suite that takes long is heard of.
const progressEvery = time.Minute

// A progress counts the tests of a step that have begun.
type progress struct {
	began, told time.Time
	tests       int
}

func newProgress() progress {
	now := time.Now()
	return progress{began: now, told: now}
}

// see looks for tests that begin in what a test binary writes. It returns the last one if it is time to tell.
func (p *progress) see(text string) (test string, tell bool) {
	for line := range strings.Lines(text) {
		if name, begins := strings.CutPrefix(line, testMark+"=== RUN "); begins {
			p.tests++
			test = strings.TrimSpace(name)
		}
	}
	if test == "" || time.Since(p.told) < progressEvery {
		return "", false
	}
	p.told = time.Now()
	return test, true
}
