// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// scene is played in each variant, once a round.
type scene func(k *kit)

// samples are what was measured: by work, by variant, a value for each round.
type samples map[string]map[string][]float64

func (s samples) add(work, variant string, value float64) {
	if s[work] == nil {
		s[work] = make(map[string][]float64)
	}
	s[work][variant] = append(s[work][variant], value)
}

// results are those of a section.
type results struct {
	order []string // of the works
	hooks samples  // nanoseconds of program time per call
	calls samples  // nanoseconds of wall time per call
	works map[string]bool
}

func newResults() *results {
	return &results{hooks: make(samples), calls: make(samples), works: make(map[string]bool)}
}

// kit is what a scene works with.
type kit struct {
	*bench
	*variant
	family  *family
	results *results
}

// add enters a work without its own measurement, such as a sum.
func (k *kit) add(work string, hooks, calls float64) {
	if !k.results.works[work] {
		k.results.works[work] = true
		k.results.order = append(k.results.order, work)
	}
	k.results.hooks.add(work, k.variant.name, hooks)
	k.results.calls.add(work, k.variant.name, calls)
}

type cost struct{ hooks, call float64 } // nanoseconds per call

// measure runs f, which makes the kernel run the hooks so many times each, and enters its cost under
// the name of the work; "" enters nothing.
func (k *kit) measure(work string, times int, f func(), hooks ...string) cost {
	var none time.Duration
	return k.measureLess(work, times, &none, f, hooks...)
}

// measureLess is measure less the wall time that f spends on something else, between.
func (k *kit) measureLess(work string, times int, between *time.Duration, f func(), hooks ...string) cost {
	before := make([]ebpf.ProgramStats, len(hooks))
	for i, hook := range hooks {
		before[i] = programStats(k.progs[hook])
	}
	start := time.Now()
	f()
	c := cost{call: float64(time.Since(start)-*between) / float64(times)}
	for i, hook := range hooks {
		now := programStats(k.progs[hook])
		ran := float64(now.RunCount - before[i].RunCount)
		// A few sockets may be released a little later: whoever looks through all file tables holds
		// a file for a moment.
		if ran < 0.97*float64(times) || ran > 1.03*float64(times) {
			panic(fmt.Errorf("%s: %s was to run %d times and ran %.0f times", work, hook, times, ran))
		}
		c.hooks += float64(now.Runtime-before[i].Runtime) / ran
	}
	if work != "" {
		k.add(work, c.hooks, c.call)
	}
	return c
}

func programStats(p *ebpf.Program) ebpf.ProgramStats {
	s, err := p.Stats()
	if err != nil {
		panic(err)
	}
	return *s
}

// play plays the scenes n times in each of the variants, which take turns and begin in another order
// each time, and one time more that does not count.
func (b *bench) play(ctx context.Context, n int, variants []*variant, scenes ...scene) (*results, error) {
	r := newResults()
	for round := range n + 1 {
		if round == 1 {
			r = newResults()
		}
		for i := range variants {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v := variants[(i+round)%len(variants)]
			if err := b.enter(v); err != nil {
				return nil, err
			}
			for _, f := range families {
				for _, s := range scenes {
					k := &kit{bench: b, variant: v, family: f, results: r}
					if err := k.try(s); err != nil {
						return nil, fmt.Errorf("%s, %s: %w", v.name, f.name, err)
					}
				}
			}
		}
	}
	return r, nil
}

// try plays a scene. What is measured has no room for errors; they come as panics.
func (k *kit) try(s scene) (err error) {
	defer func() {
		if p := recover(); p != nil {
			e, ok := p.(error)
			if !ok {
				panic(p)
			}
			err = e
		}
	}()
	s(k)
	return nil
}

func (k *kit) hook(name string) string { return name + k.family.digit }

// inserts restores what the hash is to be like before so many inserts.
func (k *kit) inserts(n int) {
	if err := k.prepare(k.family, n); err != nil {
		panic(err)
	}
}
