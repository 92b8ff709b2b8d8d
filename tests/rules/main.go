// SPDX-License-Identifier: Apache-2.0

// Command rules breaks each rule of the BPF programs once (rules.go), in a copy of the C files, and runs the test that must
// fail then. A rule whose breakage no test notices is an error. Needs root, clang-19 and a little-endian machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// rule is a rule of docs/design.md, and a change that breaks it.
type rule struct {
	name string
	file string // in bpf
	old  string // is there exactly once
	new  string
	// pkg and test are the test that fails then. With an empty test the whole package runs, and what fails is printed.
	pkg, test string
}

// objects are what is compiled for the tests of a package; a C file each, without its ending, and the object.
var objects = map[string]map[string]string{
	"tests/prog": {"tests/prog/harness": "tests/prog/harness_bpfel.o"},
	"": {
		"bpf/sock/revsk":      "bpf/sock/revsk_bpfel.o",
		"bpf/iter/dump":       "bpf/iter/dump_bpfel.o",
		"bpf/iter/fill":       "bpf/iter/fill_bpfel.o",
		"bpf/iter/descriptor": "bpf/iter/descriptor_bpfel.o",
		"bpf/iter/destroy":    "bpf/iter/destroy_bpfel.o",
		"bpf/iter/look":       "bpf/iter/look_bpfel.o",
	},
}

// running keeps tests apart: some are about time.
var running sync.Mutex

func main() {
	log.SetFlags(0)
	only := flag.String("run", "", "break only the rules whose name matches this `regexp`")
	parallel := flag.Int("parallel", runtime.NumCPU(), "compile so `many` at a time")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		log.Fatal(err)
	}
	root, err := filepath.Abs(".")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	begin := time.Now()
	work := make(chan *rule)
	var workers sync.WaitGroup
	var broken, failed atomic.Int32
	for range *parallel {
		workers.Go(func() {
			for r := range work {
				broken.Add(1)
				if err := r.mustBeNoticed(ctx, root); err != nil {
					failed.Add(1)
					log.Printf("FAIL  %s: %v", r.name, err)
				} else {
					log.Printf("ok    %s: %s %s", r.name, r.pkg, r.test)
				}
			}
		})
	}
	for i := range rules {
		if match.MatchString(rules[i].name) && ctx.Err() == nil {
			work <- &rules[i]
		}
	}
	close(work)
	workers.Wait()
	log.Printf("%d rules broken, %d of them unnoticed, in %v", broken.Load(), failed.Load(), time.Since(begin).Round(time.Second))
	if failed.Load() != 0 || broken.Load() == 0 {
		os.Exit(1)
	}
}

// mustBeNoticed breaks the rule, and returns an error unless its test fails by that.
func (r *rule) mustBeNoticed(ctx context.Context, root string) error {
	dir, err := os.MkdirTemp("", "revsk-rules-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"bpf/lib", "bpf/sock", "bpf/iter", "tests/prog"} {
		if err := copySources(filepath.Join(root, sub), filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	if err := replaceOnce(filepath.Join(dir, "bpf", r.file), r.old, r.new); err != nil {
		return err
	}
	wanted := objects[r.pkg]
	if wanted == nil {
		wanted = objects[""]
	}
	// The go command takes the objects from here, and everything else from the tree.
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for source, object := range wanted {
		if !strings.HasPrefix(r.file, "lib/") && source+".c" != "bpf/"+r.file {
			continue
		}
		target := filepath.Join(dir, object)
		clang := exec.CommandContext(ctx, "clang-19", "-O2", "-g", "-w", "-mcpu=v3", "-target", "bpfel",
			"-I"+filepath.Join(dir, "bpf/lib"), "-c", filepath.Join(dir, source+".c"), "-o", target)
		if out, err := clang.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		overlay.Replace[filepath.Join(root, object)] = target
	}
	description, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, description, 0o600); err != nil {
		return err
	}
	return r.mustFail(ctx, root, path, filepath.Join(dir, "test"))
}

func copySources(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, pattern := range []string{"*.c", "*.h"} {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func replaceOnce(path, from, to string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := strings.Count(string(b), from); n != 1 {
		return fmt.Errorf("%q is there %d times, not once", from, n)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(b), from, to, 1)), 0o600)
}

var failure = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// mustFail returns an error unless the test fails, and not because the programs cannot be loaded.
func (r *rule) mustFail(ctx context.Context, root, overlay, binary string) error {
	build := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-c", "-o", binary, "./"+r.pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	running.Lock()
	defer running.Unlock()
	test := exec.CommandContext(ctx, binary, "-test.run", r.test, "-test.failfast", "-test.timeout", "5m")
	test.Dir = filepath.Join(root, r.pkg)
	out, err := test.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return err
	}
	var failed []string
	for _, m := range failure.FindAllSubmatch(out, -1) {
		failed = append(failed, string(m[1]))
	}
	switch {
	case strings.Contains(string(out), "load program:"):
		return fmt.Errorf("the kernel refuses the broken programs\n%.1000s", out)
	case r.test == "":
		return fmt.Errorf("names no test; these fail:\n\t%s", strings.Join(failed, "\n\t"))
	case err == nil:
		return fmt.Errorf("unnoticed by %s %s: it passes, or there is none of this name", r.pkg, r.test)
	case len(failed) == 0:
		return fmt.Errorf("%s ends without a failure of a test\n%.1000s", r.pkg, out)
	}
	return nil
}
