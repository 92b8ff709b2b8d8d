// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
)

// goal is a ratio of program time, storage to another variant, that the datapath must not exceed, and
// one that it aims for. It is for every figure of the section "hooks" whose work begins so.
type goal struct {
	name  string
	works []string
	base  string
	must  float64
	aim   float64
}

var goals = []goal{
	{"receive from a stranger", []string{"receive from a stranger"}, legacyFull, 0.3, 0.15},
	{"receive from a service", []string{"receive from a service"}, legacyFull, 0.65, 0.45},
	{"getpeername", []string{"getpeername of a service"}, legacyFull, 0.65, 0.45},
	{"send to a known service", []string{"send to a known service"}, legacyFull, 0.75, 0.5},
	{"release of an ordinary socket", []string{"release of an unused socket", "release of an ordinary connected socket"}, legacyFull, 0.1, 0.05},
	{"a connected socket's life", []string{"life: connect"}, legacyFull, 1.0, 0.75},
	{"the same against an empty hash", []string{"life: connect"}, legacyEmpty, 1.2, 0.95},
}

// figures are those that a goal is for.
func (g goal) figures(r *report) []figure {
	var all []figure
	for _, f := range r.Figures {
		for _, work := range g.works {
			if f.Section == "hooks" && strings.HasPrefix(f.Work, work) {
				all = append(all, f)
			}
		}
	}
	return all
}

// against is the ratio of storage to another variant.
func (f figure) against(base string) Stat { return f.Ratios[storage+" / "+base] }

// worst is the figure in which storage is the least ahead of another variant.
func (g goal) worst(r *report, base string) (worst figure, ok bool) {
	for _, f := range g.figures(r) {
		if !ok || f.against(base).Median > worst.against(base).Median {
			worst, ok = f, true
		}
	}
	return worst, ok
}

var errMissed = errors.New("missed by more than the noise")

// check returns an error for each figure that misses what it must reach even at the good end of its
// noise.
func (r *report) check() error {
	var errs []error
	for _, g := range goals {
		for _, f := range g.figures(r) {
			if s := f.against(g.base); s.SureLow > g.must {
				errs = append(errs, fmt.Errorf("%w: %s, storage / %s: must be %.2f, is %.2f (99 %% sure: at least %.2f)",
					errMissed, f.Work, g.base, g.must, s.Median, s.SureLow))
			}
		}
	}
	return errors.Join(errs...)
}
