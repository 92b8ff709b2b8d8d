// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/revsk/revsk/tests/vm/plan"
)

// testMark is what -test.v=test2json puts before the lines that frame tests.
const testMark = "\x16"

// A collector turns the events of one machine into its result.
type collector struct {
	result   *machineResult
	rules    rules
	steps    []plan.Step
	packages map[string]string // import paths of suites
	json     io.Writer         // for go test -json lines, may be nil
	verbose  io.Writer         // for output as it comes, may be nil
	log      func(format string, args ...any)

	stdout, stderr map[string]*strings.Builder
	progress       progress // of the step that runs
	ended          int      // steps
	boot           *plan.Boot
	done           *plan.Done
}

func newCollector(
	result *machineResult, r rules, steps []plan.Step, b *build, log func(string, ...any),
) *collector {
	c := &collector{
		result: result, rules: r, steps: steps, log: log,
		packages: make(map[string]string),
		stdout:   make(map[string]*strings.Builder), stderr: make(map[string]*strings.Builder),
	}
	for _, s := range b.Suites {
		c.packages[s.Name] = s.ImportPath
	}
	for _, s := range steps {
		c.stdout[s.Name], c.stderr[s.Name] = new(strings.Builder), new(strings.Builder)
	}
	return c
}

// event takes one event in.
func (c *collector) event(ctx context.Context, e plan.Event) error {
	switch {
	case e.Boot != nil:
		c.boot, c.progress = e.Boot, newProgress()
		c.result.Release, c.result.Uptime = e.Boot.Release, e.Boot.Uptime
		booted, err := parseSeries(e.Boot.Release)
		if err != nil {
			return err
		}
		c.rules.booted = booted
	case e.Output != nil:
		to := c.stdout
		if e.Output.Stderr {
			to = c.stderr
		}
		b, ok := to[e.Output.Step]
		if !ok {
			return fmt.Errorf("output of an unknown step %q", e.Output.Step)
		}
		b.WriteString(e.Output.Text)
		if c.verbose != nil {
			fmt.Fprintf(c.verbose, "%s | %s", c.result.title(), strings.TrimPrefix(e.Output.Text, testMark))
		} else if test, tell := c.progress.see(e.Output.Text); tell {
			c.log("%s: %s: %d tests have begun in %v, now %s", c.result.title(), e.Output.Step, c.progress.tests,
				time.Since(c.progress.began).Round(time.Second), test)
		}
	case e.Exit != nil:
		c.progress = newProgress()
		return c.exit(ctx, *e.Exit)
	case e.Fatal != nil:
		c.problem("setting the machine up", *e.Fatal, "")
	case e.Done != nil:
		c.done = e.Done
		if bad := newTaint(c.boot.Taint, c.done.Taint); bad != nil {
			c.problem("the kernel is tainted", strings.Join(bad, ", "), "")
		}
	}
	return nil
}

func (c *collector) problem(what, why, output string) {
	c.result.Problems = append(c.result.Problems, failure{what, why, output})
}

func (c *collector) exit(ctx context.Context, exit plan.Exit) error {
	if c.ended >= len(c.steps) || c.steps[c.ended].Name != exit.Step {
		return fmt.Errorf("step %q ended out of turn", exit.Step)
	}
	step := c.steps[c.ended]
	c.ended++
	stdout, stderr := c.stdout[step.Name].String(), c.stderr[step.Name].String()
	switch {
	case step.Test:
		events, err := testToJSON(ctx, stdout, c.packages[step.Name], exit.Seconds)
		if err != nil {
			return err
		}
		if err := c.writeJSON(events); err != nil {
			return err
		}
		c.add(judge(step.Name, events, exit, c.rules))
	case step.Name == featuresStep:
		c.features(stdout, stderr, exit)
	default:
		c.add(judgeCommand(step.Name, stdout, stderr, exit))
	}
	return nil
}

func (c *collector) add(s suiteResult) {
	c.result.Suites = append(c.result.Suites, s)
	verdict := "ok"
	if len(s.Failures) > 0 {
		verdict = "FAIL"
	}
	c.log("%s: %s %s: %d passed, %d failed, %d skipped in %.1f s",
		c.result.title(), s.Name, verdict, s.Passed, s.Failed, s.Skipped, s.Seconds)
	for _, f := range s.Failures { // what they printed is in the report
		c.log("%s: %s: %s failed", c.result.title(), s.Name, f.What)
	}
}

// features takes the answer of revsk features, if the command knows that already.
func (c *collector) features(stdout, stderr string, exit plan.Exit) {
	if exit.Code != 0 && strings.Contains(stderr, "unknown command") {
		c.log("%s: revsk has no command features yet", c.result.title())
		return
	}
	// It answers, too, where revsk cannot run. Whether it should is for missingFeatures to say.
	if (exit.Code != 0 && exit.Code != exitUnsupported) || exit.Error != "" {
		c.problem("revsk features", fmt.Sprintf("exit code %d %s", exit.Code, exit.Error), stdout+stderr)
		return
	}
	features, err := parseFeatures([]byte(stdout))
	if err != nil {
		c.problem("revsk features", err.Error(), stdout+stderr)
		return
	}
	c.result.Features = features
	// A machine of the plain variant has all that its kernel has. The running kernel may be built
	// without.
	if c.result.Variant == plain.Name && !c.rules.running {
		for _, name := range missingFeatures(features, c.rules.booted) {
			c.problem("revsk features", name+" is not available, though this kernel is new enough", "")
		}
	}
}

// end notes what has not come to its end, and why; last is the end of the console.
func (c *collector) end(ctx context.Context, why, last string) error {
	switch {
	case c.done != nil:
		return nil
	case c.boot == nil:
		c.problem("the machine did not come up", why, last)
		return nil
	}
	c.problem("the machine did not come to the end", why, last)
	if c.ended == len(c.steps) {
		return nil
	}
	step := c.steps[c.ended]
	seconds := time.Since(c.progress.began).Seconds()
	if err := c.exit(ctx, plan.Exit{Step: step.Name, Code: -1, Error: why, Seconds: seconds}); err != nil {
		return err
	}
	var never []string
	for _, s := range c.steps[c.ended:] {
		never = append(never, s.Name)
	}
	if never != nil {
		c.problem("never ran", strings.Join(never, ", "), "")
	}
	return nil
}

func (c *collector) writeJSON(events []testEvent) error {
	if c.json == nil {
		return nil
	}
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	for _, e := range events {
		e.Kernel, e.Variant = c.result.Name, c.result.Variant
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	if _, err := c.json.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("writing test events: %w", err)
	}
	return nil
}

// testToJSON has the go command convert the output of a test binary, as go test -json does. The
// converter is not there while the tests run, so the times it gives are not those of the tests, except
// the durations that tests wrote themselves; of the whole package it is given.
func testToJSON(ctx context.Context, text, pkg string, seconds float64) ([]testEvent, error) {
	if !strings.Contains(text, testMark+"PASS\n") && !strings.Contains(text, testMark+"FAIL\n") {
		// The binary did not come to the end. The converter holds the result of a test back until
		// something follows.
		text += "\n" + testMark + "=== NAME  \n"
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "go", "tool", "test2json", "-t", "-p", pkg)
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w: %s", err, stderr.String())
	}
	events, err := parseTestEvents(out)
	for i := range events {
		events[i].Time = ""
		if e := &events[i]; e.Test == "" && e.Elapsed != 0 {
			e.Elapsed = seconds
		}
	}
	return events, err
}
