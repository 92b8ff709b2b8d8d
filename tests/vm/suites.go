// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/revsk/revsk/tests/vm/plan"
)

// smokePackage runs first on every machine, whatever else is asked for: it proves that the machine
// is what the other suites expect.
const smokePackage = "./tests/vm/smoke"

// A suite is a test binary.
type suite struct {
	Name       string // directory in the module, "tests/prog"
	ImportPath string
	Dir        string // of its sources
	Binary     string
}

// A build is everything made from the sources that machines run.
type build struct {
	Root   string // of the module
	Suites []suite
	Init   string // process 1
	Revsk  string // the command, "" if it does not exist yet
}

// buildAll compiles statically, so that machines need no libraries. Of the packages, those that do
// not exist or have no tests are left out, unless they were asked for by name.
func buildAll(ctx context.Context, root string, opts *options, dir string) (*build, error) {
	packages, explicit := opts.packages, true
	if len(packages) == 0 {
		packages, explicit = strings.Fields(defaultPackages), false
	}
	b := &build{Root: root, Init: filepath.Join(dir, "init")}
	if err := goTool(ctx, root, "build", "-o", b.Init, "./tests/vm/init"); err != nil {
		return nil, err
	}
	packages = slices.DeleteFunc(slices.Clone(packages), func(p string) bool {
		return path.Clean(p) == path.Clean(smokePackage)
	})
	for _, pkg := range append([]string{smokePackage}, packages...) {
		if !explicit && !exists(filepath.Join(root, pkg)) {
			continue
		}
		s, err := findSuite(ctx, root, opts.tags, pkg)
		if err != nil {
			return nil, err
		}
		if s == nil {
			if explicit {
				return nil, fmt.Errorf("%s has no tests", pkg)
			}
			continue
		}
		s.Binary = filepath.Join(dir, strings.ReplaceAll(s.Name, "/", "_")+".test")
		if err := goTool(ctx, root, "test", "-c", "-tags", opts.tags, "-o", s.Binary, pkg); err != nil {
			return nil, err
		}
		b.Suites = append(b.Suites, *s)
	}
	if opts.revsk && exists(filepath.Join(root, "cmd/revsk")) {
		b.Revsk = filepath.Join(dir, "revsk")
		if err := goTool(ctx, root, "build", "-tags", opts.tags, "-o", b.Revsk, "./cmd/revsk"); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func goTool(ctx context.Context, root, verb string, args ...string) error {
	env := append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "PWD="+root)
	args = append([]string{"-C", root, verb, "-ldflags=-s -w"}, args...)
	_, err := output(ctx, env, "go", args...)
	return err
}

// findSuite describes a package, nil if it has no tests.
func findSuite(ctx context.Context, root, tags, pkg string) (*suite, error) {
	out, err := output(ctx, nil, "go", "-C", root, "list", "-tags", tags, "-json", pkg)
	if err != nil {
		return nil, err
	}
	var first *suite
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return first, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading go list: %w", err)
		}
		if first != nil {
			return nil, fmt.Errorf("%s is more than one package", pkg)
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 {
			return nil, nil
		}
		name, err := filepath.Rel(root, p.Dir)
		if err != nil {
			return nil, err
		}
		first = &suite{Name: name, ImportPath: p.ImportPath, Dir: p.Dir}
	}
}

// Where things lie on a machine.
const (
	sourceDir   = "/src" // each test binary in the directory of its package, so that it finds its files
	revskPath   = "/bin/revsk"
	binaryName  = "suite.test"
	timeoutSlop = 30 * time.Second // for a test binary that timed out to say where
)

// sources are directories that tests compare with what they know, besides the suites' own.
var sources = []string{"bpf", "docs", "inspect", "loader", "migrate", "tests"}

// Steps besides the suites.
const (
	selftestStep = "selftest"
	featuresStep = "features"
)

// slowArgs make suites smaller for an emulated processor, tens of times slower than a real one.
var slowArgs = map[string][]string{
	// What the programs' sizes are does not depend on the processor, and to load them takes most of the time.
	"tests/kernel": {"-scale=10", "-stress.duration=5s", "-test.skip=^TestBranchSizes$"},
	// Most of it is loading the programs, again for every step that may fail.
	"loader": {"-test.skip=AnyStep"},
	// Of the command, what depends on the kernel.
	"cmd/revsk": {"-test.run=Capabilities|Names|Feature|Kernel"},
}

// A place says how a machine reaches what it runs.
type place struct {
	suite func(suite) (dir, binary string)
	revsk string
	env   []string
	slow  bool
}

// steps are what a machine runs.
func (b *build) steps(opts *options, v variant, at place) []plan.Step {
	env := append(slices.Clone(at.env), "REVSK_VM_VARIANT="+v.Name)
	if b.Revsk != "" {
		env = append(env, "REVSK_BIN="+at.revsk)
	}
	var steps []plan.Step
	for _, s := range b.Suites {
		dir, binary := at.suite(s)
		argv := []string{binary, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + opts.suiteTimeout.String()}
		if at.slow {
			argv = append(argv, slowArgs[s.Name]...)
		}
		if !isSmoke(s.Name) {
			if opts.run != "" {
				argv = append(argv, "-test.run="+opts.run)
			}
			argv = append(argv, opts.args...)
		}
		steps = append(steps, plan.Step{
			Name: s.Name, Test: true, Dir: dir, Argv: argv, Env: env,
			Timeout: opts.suiteTimeout + timeoutSlop,
		})
	}
	if b.Revsk == "" || opts.run != "" {
		return steps
	}
	command := func(name string) plan.Step {
		return plan.Step{
			Name: name, Dir: "/", Argv: []string{at.revsk, name, "-o", "json"}, Env: env,
			Timeout: opts.suiteTimeout,
		}
	}
	return append(steps, command(selftestStep), command(featuresStep))
}

func isSmoke(name string) bool { return name == path.Clean(smokePackage) }
