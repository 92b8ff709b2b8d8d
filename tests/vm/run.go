// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/revsk/revsk/tests/vm/plan"
)

// runAll builds, fetches, runs every kernel in every variant, and reports. It returns whether all is
// well; its error is what kept it from finding out.
func runAll(ctx context.Context, opts *options, stdout, stderr io.Writer) (bool, error) {
	start := time.Now()
	r := &runner{opts: opts, stderr: &lockedWriter{w: stderr}}
	if opts.out != "" {
		if err := os.MkdirAll(opts.out, 0o755); err != nil {
			return false, fmt.Errorf("making the output directory: %w", err)
		}
	}
	work, err := os.MkdirTemp("", "revsk-vm-")
	if err != nil {
		return false, fmt.Errorf("making a working directory: %w", err)
	}
	defer os.RemoveAll(work)
	r.work = work
	if r.out = opts.out; r.out == "" {
		r.out = filepath.Join(work, "out")
	}
	if opts.json != "" {
		f, err := os.Create(opts.json)
		if err != nil {
			return false, fmt.Errorf("creating the file of test events: %w", err)
		}
		defer f.Close()
		r.json = &lockedWriter{w: f}
	}
	if err := r.prepare(ctx); err != nil {
		return false, err
	}
	results, err := r.runMachines(ctx)
	if err != nil {
		return false, err
	}
	if opts.run != "" {
		requireMatch(results, opts.run)
	}
	if err := writeReport(stdout, results); err != nil {
		return false, fmt.Errorf("writing the table: %w", err)
	}
	ok := !slices.ContainsFunc(results, func(m *machineResult) bool { return !m.ok() })
	if !ok && opts.out == "" {
		// What is needed to look into a failure outlives the working directory.
		if kept, err := os.MkdirTemp("", "revsk-vm-failed-"); err == nil && os.Rename(r.out, filepath.Join(kept, "out")) == nil {
			r.log("consoles and initramfs are in %s", filepath.Join(kept, "out"))
		}
	}
	r.log("%d machines in %v", len(results), time.Since(start).Round(time.Second))
	return ok, nil
}

type runner struct {
	opts      *options
	work, out string
	json      io.Writer
	stderr    io.Writer // locked
	docs      sync.Mutex

	root  string // of the module
	build *build
	base  []byte // first part of every initramfs
	trees map[string]kernelTree
	errs  map[string]error // kernels that could not be had
}

func (r *runner) log(format string, args ...any) {
	fmt.Fprintf(r.stderr, format+"\n", args...)
}

// prepare makes all that does not depend on a machine.
func (r *runner) prepare(ctx context.Context) error {
	module, err := output(ctx, nil, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	r.root = strings.TrimSpace(module)
	virtual := slices.DeleteFunc(slices.Clone(r.opts.kernels), func(s string) bool { return s == runningName })
	if len(virtual) > 0 {
		if err := ensureTools(ctx, r.log); err != nil {
			return err
		}
	}
	r.log("building")
	if r.build, err = buildAll(ctx, r.root, r.opts, r.work); err != nil {
		return err
	}
	if len(virtual) == 0 {
		return nil
	}
	if r.base, err = r.build.baseArchive(); err != nil {
		return err
	}
	r.trees, r.errs, err = fetchKernels(ctx, virtual, r.opts, filepath.Join(r.work, "kernels"), r.log)
	return err
}

// runMachines runs every kernel in every variant, a few at a time. The results are in the order asked for.
func (r *runner) runMachines(ctx context.Context) ([]*machineResult, error) {
	type job struct {
		kernel  string
		variant variant
	}
	var jobs []job
	for _, name := range r.opts.kernels {
		for _, v := range r.opts.variants {
			if name == runningName {
				// It is as it is.
				v = plain
			}
			j := job{name, v}
			if !slices.ContainsFunc(jobs, func(o job) bool { return o.kernel == name && o.variant.Name == v.Name }) {
				jobs = append(jobs, j)
			}
		}
	}
	results := make([]*machineResult, len(jobs))
	errs := make([]error, len(jobs))
	next := make(chan int, len(jobs))
	for i := range jobs {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range r.opts.parallel {
		wg.Go(func() {
			for i := range next {
				if errs[i] = ctx.Err(); errs[i] == nil {
					results[i], errs[i] = r.runMachine(ctx, jobs[i].kernel, jobs[i].variant)
					errs[i] = errors.Join(errs[i], r.note(results[i]))
				}
			}
		})
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

// note adds a machine to the page of kernels: also one that was cut off, with the suites that had ended.
func (r *runner) note(m *machineResult) error {
	if r.opts.docs == "" || len(m.Suites) == 0 {
		return nil
	}
	r.docs.Lock()
	defer r.docs.Unlock()
	page := *m // which earlier suites are added to
	page.Suites = slices.Clone(m.Suites)
	return writeDocs(r.opts.docs, []*machineResult{&page}, time.Now())
}

// runMachine runs one machine. Only what concerns the whole run is an error.
func (r *runner) runMachine(ctx context.Context, name string, v variant) (*machineResult, error) {
	start := time.Now()
	m := &machineResult{Name: name, Variant: v.Name}
	defer func() { m.Seconds = time.Since(start).Seconds() }()
	if err := r.errs[name]; err != nil {
		m.Problems = append(m.Problems, failure{What: "fetching the kernel", Why: err.Error()})
		return m, nil
	}
	rules := rules{lacks: v.Lacks, running: name == runningName, filtered: r.opts.run != ""}
	var err error
	if name == runningName {
		here := place{suite: placeHere, revsk: r.build.Revsk, env: os.Environ()}
		err = runHere(ctx, r.collector(m, rules, r.build.steps(r.opts, v, here)))
	} else {
		err = r.bootMachine(ctx, m, rules, v)
	}
	if ctx.Err() != nil {
		return m, ctx.Err()
	}
	if err != nil {
		m.Problems = append(m.Problems, failure{What: "running the machine", Why: err.Error()})
	}
	return m, nil
}

func placeHere(s suite) (dir, binary string) { return s.Dir, s.Binary }

func (r *runner) bootMachine(ctx context.Context, m *machineResult, rules rules, v variant) error {
	tree := r.trees[m.Name]
	if tree.Config != "" {
		config, err := os.ReadFile(tree.Config)
		if err != nil {
			return fmt.Errorf("reading the kernel's configuration: %w", err)
		}
		rules.unset = unsetOptions(string(config))
	}
	g := &guest{tree: tree, variant: v, dir: filepath.Join(r.out, m.Name+"-"+v.Name)}
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return fmt.Errorf("making the machine's directory: %w", err)
	}
	steps := r.build.steps(r.opts, v, inMachine(r.opts))
	boot := func() error {
		m.Version, m.Suite, m.Accel = tree.Version, tree.Suite, r.opts.accel
		r.log("%s: booting %s", m.title(), tree.Release)
		return g.boot(ctx, r.opts, r.build, r.base, r.collector(m, rules, steps))
	}
	if err := boot(); err != nil || m.ok() {
		return err
	}
	console, err := os.ReadFile(g.console())
	if err != nil || !ranStaleBreakpoint(string(console)) {
		return err
	}
	r.log("%s: QEMU ran a breakpoint that the kernel had taken away, which is QEMU's fault: once more", m.title())
	*m = machineResult{Name: m.Name, Variant: m.Variant}
	return boot()
}

func (r *runner) collector(m *machineResult, rules rules, steps []plan.Step) *collector {
	c := newCollector(m, rules, steps, r.build, r.log)
	c.json = r.json
	if r.opts.verbose {
		c.verbose = r.stderr
	}
	return c
}

// requireMatch makes every machine fail on which -run left no test besides those of smoke.
func requireMatch(results []*machineResult, pattern string) {
	for _, m := range results {
		ran := slices.ContainsFunc(m.Suites, func(s suiteResult) bool {
			return !isSmoke(s.Name) && s.Passed+s.Failed+s.Skipped > 0
		})
		if !ran && m.ok() {
			m.Problems = append(m.Problems, failure{What: "no test matches", Why: pattern})
		}
	}
}

// lockedWriter lets machines that run at the same time write whole lines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
