// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
)

// goal is a ratio of program time, of a variant to another, that the datapath must not exceed, and one that it aims
// for. It is for every figure of the sections "hooks" and "peers" whose work begins so. A variant that did not take part, such as
// the former build, has no goals.
type goal struct {
	name    string
	works   []string
	variant string
	base    string
	must    float64
	aim     float64
}

var goals = []goal{
	{"receive from a stranger", []string{"receive from a stranger"}, storage, legacyFull, 0.45, 0.3},
	{"the same in mode mirror", []string{"receive from a stranger"}, mirror, legacyFull, 1.1, 1.0},
	{"receive from a service", []string{"receive from a service"}, storage, legacyFull, 0.40, 0.25},
	{"getpeername", []string{"getpeername of a service"}, storage, legacyFull, 0.30, 0.20},
	{"send to a known service", []string{"send to a known service"}, storage, former, 1.05, 0.95},
	{"send and receive, 4 to 1,000 peers in turn", manyPeersWorks("send and receive"), storage, legacyFull, 1.0, 0.85},
	{"the same against the former build", manyPeersWorks("send and receive"), storage, former, 0.9, 0.75},
	{"close of a socket with 1,000 peers", []string{"close, 1000 peers"}, storage, former, 0.2, 0.1},
	{"release of an ordinary socket", []string{"release of an unused socket", "release of an ordinary connected socket"}, storage, legacyFull, 0.1, 0.05},
	{"a connected socket's life", []string{"life: connect"}, storage, legacyFull, 1.0, 0.8},
	{"the same against an empty hash", []string{"life: connect"}, storage, legacyEmpty, 1.35, 1.1},
	{"connect to no service", []string{"connect to no service"}, storage, former, 0.8, 0.7},
	{"receive from a service and getpeername in mode mirror", []string{"receive from a service", "getpeername"}, mirror, storage, 1.05, 1.0},
	{
		"connect to no service, and release of an ordinary socket, in mode mirror",
		[]string{"connect to no service", "release of an unused socket", "release of an ordinary connected socket"}, mirror, storage, 1.05, 1.0,
	},
	{
		"the same without the lookup for any protocol, IPv4", []string{"connect to no service, UDP IPv4", "connect to no service, TCP IPv4"},
		oneProtocol, former, 0.65, 0.5,
	},
	{
		"the same without the lookup for any protocol, IPv6", []string{"connect to no service, UDP IPv6", "connect to no service, TCP IPv6"},
		oneProtocol, former, 0.75, 0.6,
	},
}

// manyPeersWorks are the works of sockets with more peers than slots.
func manyPeersWorks(what string) []string {
	var all []string
	for _, n := range peerCounts[1:] {
		all = append(all, fmt.Sprintf("%s, %d peers", what, n))
	}
	return all
}

// figures are those that a goal is for.
func (g goal) figures(r *report) []figure {
	var all []figure
	for _, f := range r.Figures {
		for _, work := range g.works {
			if (f.Section == "hooks" || f.Section == "peers") && strings.HasPrefix(f.Work, work) {
				all = append(all, f)
			}
		}
	}
	return all
}

// against is the ratio of storage to another variant.
func (f figure) against(base string) Stat { return f.ratio(storage, base) }

func (f figure) ratio(variant, base string) Stat { return f.Ratios[variant+" / "+base] }

// worst is the figure in which the variant is the least ahead of another.
func (g goal) worst(r *report, base string) (worst figure, ok bool) {
	for _, f := range g.figures(r) {
		s := f.ratio(g.variant, base)
		if s.Rounds > 0 && (!ok || s.Median > worst.ratio(g.variant, base).Median) {
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
			if s := f.ratio(g.variant, g.base); s.SureLow > g.must {
				errs = append(errs, fmt.Errorf("%w: %s, %s / %s: must be %.2f, is %.2f (99 %% sure: at least %.2f)",
					errMissed, f.Work, g.variant, g.base, g.must, s.Median, s.SureLow))
			}
		}
	}
	return errors.Join(errs...)
}
