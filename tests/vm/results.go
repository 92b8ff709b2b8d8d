// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
)

// A failure is one thing that went wrong, with what was written about it.
type failure struct {
	What   string // "TestX", "kernel warning on the console"
	Why    string
	Output string `json:"-"`
}

// A suiteResult is what became of one step.
type suiteResult struct {
	Name                    string
	Command                 bool // not a test binary: it passed or failed as a whole
	Passed, Failed, Skipped int
	Seconds                 float64
	Failures                []failure
	Skips                   []failure // allowed ones
}

// A machineResult is what became of one kernel in one variant.
type machineResult struct {
	Name     string // as asked for, "6.12"
	Variant  string
	Release  string // of uname, "" if it never came up
	Version  string // of the packages
	Suite    string // of Debian
	Accel    string
	Day      string  // of the run
	Uptime   float64 // when the machine was set up
	Seconds  float64
	Suites   []suiteResult
	Problems []failure // with the machine itself
	Features []feature
}

func (m *machineResult) ok() bool {
	return len(m.Problems) == 0 &&
		!slices.ContainsFunc(m.Suites, func(s suiteResult) bool { return len(s.Failures) > 0 })
}

// title is how a machine is called in messages: "6.12", "6.12 hybrid".
func (m *machineResult) title() string {
	if m.Variant == plain.Name {
		return m.Name
	}
	return m.Name + " " + m.Variant
}

// A testEvent is a line of go test -json. Kernel and Variant are added to it.
type testEvent struct {
	Time    string `json:",omitempty"`
	Action  string
	Package string  `json:",omitempty"`
	Test    string  `json:",omitempty"`
	Elapsed float64 `json:",omitempty"`
	Output  string  `json:",omitempty"`
	Kernel  string  `json:",omitempty"`
	Variant string  `json:",omitempty"`
}

// rules are what a suite's result is judged by.
type rules struct {
	booted   series
	lacks    []string        // what the variant takes away
	unset    map[string]bool // options that the kernel is built without
	running  bool            // this machine's own kernel
	filtered bool            // by -run: a suite without a test is all right
}

// judge sums a suite's events up. Only tests without subtests are counted, and those that failed by
// themselves.
func judge(name string, events []testEvent, exit plan.Exit, r rules) suiteResult {
	type test struct {
		outcome string
		output  strings.Builder
	}
	s := suiteResult{Name: name, Seconds: exit.Seconds}
	tests := make(map[string]*test)
	parents := make(map[string]bool) // or prefixes of names with a slash in them
	var order []string
	var rest strings.Builder
	get := func(name string) *test {
		if tests[name] == nil {
			tests[name] = new(test)
			order = append(order, name)
		}
		return tests[name]
	}
	for _, e := range events {
		if e.Test == "" {
			rest.WriteString(e.Output)
			continue
		}
		t := get(e.Test)
		for parent := e.Test; ; {
			i := strings.LastIndexByte(parent, '/')
			if i < 0 {
				break
			}
			parent = parent[:i]
			parents[parent] = true
		}
		switch e.Action {
		case "output":
			t.output.WriteString(e.Output)
		case "pass", "fail", "skip":
			t.outcome = e.Action
		}
	}
	fail := func(what, why, output string) {
		s.Failed++
		s.Failures = append(s.Failures, failure{what, why, output})
	}
	failedBelow := func(name string) bool {
		return slices.ContainsFunc(order, func(other string) bool {
			return strings.HasPrefix(other, name+"/") && tests[other].outcome != "pass" && tests[other].outcome != "skip"
		})
	}
	unended := false
	for _, name := range order {
		t := tests[name]
		text := t.output.String()
		switch t.outcome {
		case "pass":
			if !parents[name] {
				s.Passed++
			}
		case "skip":
			if why := r.forbiddenSkip(text); why != "" {
				fail(name, why, text)
				continue
			}
			s.Skipped++
			s.Skips = append(s.Skips, failure{What: name, Output: text})
		case "fail":
			if !failedBelow(name) {
				fail(name, "", text)
			}
		default:
			if !failedBelow(name) {
				unended = true
				fail(name, strings.TrimSuffix("did not end: "+exit.Error, ": "), text)
			}
		}
	}
	switch {
	case exit.Error != "" && !unended:
		fail(name, exit.Error, rest.String())
	case exit.Code != 0 && s.Failed == 0:
		fail(name, fmt.Sprintf("exit code %d, though no test failed", exit.Code), rest.String())
	case exit.Code == 0 && s.Failed == 0 && s.Passed+s.Skipped == 0 && !r.filtered:
		fail(name, "ran no test", rest.String())
	case exit.Code == 0 && s.Failed == 0 && !passed(events):
		fail(name, "ended without saying PASS", rest.String())
	}
	return s
}

// passed reports whether the whole package did. A test that calls os.Exit(0) does not get there.
func passed(events []testEvent) bool {
	return slices.ContainsFunc(events, func(e testEvent) bool { return e.Test == "" && e.Action == "pass" })
}

// judgeCommand sums up a command, which is right when it exits with 0.
func judgeCommand(name, stdout, stderr string, exit plan.Exit) suiteResult {
	s := suiteResult{Name: name, Command: true, Seconds: exit.Seconds}
	why := exit.Error
	if why == "" && exit.Code != 0 {
		why = fmt.Sprintf("exit code %d", exit.Code)
	}
	if why == "" {
		why = notJSON(stdout)
	}
	if why == "" {
		s.Passed = 1
		return s
	}
	s.Failed = 1
	s.Failures = []failure{{"revsk " + name, why, stdout + stderr}}
	return s
}

// notJSON says so of what was asked for with -o json. A command line that shows its help, and exits
// with 0, when it does not know a command must not look like one that did its work.
func notJSON(stdout string) string {
	if json.Valid([]byte(stdout)) {
		return ""
	}
	return "its output is not JSON"
}

// parseTestEvents reads the lines of test2json.
func parseTestEvents(raw []byte) ([]testEvent, error) {
	var events []testEvent
	for line := range bytes.Lines(raw) {
		var e testEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("reading test2json: %w", err)
		}
		events = append(events, e)
	}
	return events, nil
}
