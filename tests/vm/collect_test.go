// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/revsk/revsk/tests/vm/plan"
	"github.com/stretchr/testify/require"
)

func testCollector(t *testing.T) (*collector, *machineResult) {
	t.Helper()
	m := &machineResult{Name: "6.1", Variant: plain.Name}
	b := &build{Suites: []suite{{Name: "tests/a", ImportPath: "m/tests/a"}, {Name: "tests/b", ImportPath: "m/tests/b"}}}
	steps := []plan.Step{{Name: "tests/a", Test: true}, {Name: "tests/b", Test: true}, {Name: selftestStep}, {Name: featuresStep}}
	return newCollector(m, rules{}, steps, b, t.Logf), m
}

// answers are those of a machine on which all is well.
const answers = `{"boot":{"Release":"6.1.0-56-cloud-amd64","Uptime":2.5,"Taint":0}}
{"output":{"Step":"tests/a","Stderr":false,"Text":"\u0016=== RUN   TestA\n"}}
{"output":{"Step":"tests/a","Stderr":false,"Text":"\u0016--- PASS: TestA (0.01s)\n"}}
{"output":{"Step":"tests/a","Stderr":false,"Text":"\u0016PASS\n"}}
{"exit":{"Step":"tests/a","Code":0,"Error":"","Seconds":1.5}}
{"output":{"Step":"tests/b","Stderr":false,"Text":"\u0016=== RUN   TestB\n\u0016--- PASS: TestB (0.01s)\n\u0016PASS\n"}}
{"exit":{"Step":"tests/b","Code":0,"Error":"","Seconds":2.5}}
{"output":{"Step":"selftest","Stderr":false,"Text":"{}"}}
{"exit":{"Step":"selftest","Code":0,"Error":"","Seconds":1}}
{"output":{"Step":"features","Stderr":false,"Text":"{\"schema\":\"revsk/features/v1\",\"features\":[{\"name\":\"x\",\"available\":true,\"needed_for\":\"y\",\"since\":\"5.10\"}]}"}}
{"exit":{"Step":"features","Code":0,"Error":"","Seconds":1}}
{"done":{"Taint":0}}
`

func TestCollectorOfAHealthyMachine(t *testing.T) {
	c, m := testCollector(t)
	var lines bytes.Buffer
	c.json = &lines
	require.NoError(t, c.read(t.Context(), strings.NewReader(answers)))
	require.NoError(t, c.end(t.Context(), "unused", "unused"))
	require.True(t, m.ok())
	require.Equal(t, "6.1.0-56-cloud-amd64", m.Release)
	require.Len(t, m.Suites, 3)
	require.Equal(t, suiteResult{Name: "tests/b", Passed: 1, Seconds: 2.5}, m.Suites[1])
	require.Equal(t, []feature{{"x", true, "y", "5.10"}}, m.Features)
	require.Contains(t, lines.String(),
		`{"Action":"pass","Package":"m/tests/a","Test":"TestA","Elapsed":0.01,"Kernel":"6.1","Variant":"plain"}`)
}

func problems(m *machineResult) (all []string) {
	for _, p := range m.Problems {
		all = append(all, p.What+": "+p.Why)
	}
	return all
}

func TestCollectorOfAMachineThatGoesDown(t *testing.T) {
	lines := strings.SplitAfter(answers, "\n")
	for _, test := range []struct {
		name     string
		upTo     int
		rest     string
		problems []string
		suites   int
	}{
		{"before it is up", 0, "", []string{"the machine did not come up: gone"}, 0},
		{"in the first suite", 2, `{"output":{"Step":"te`, []string{
			"the machine did not come to the end: gone", "never ran: tests/b, selftest, features",
		}, 1},
		{"in the second", 6, "", []string{
			"the machine did not come to the end: gone", "never ran: selftest, features",
		}, 2},
		{"at the end", 11, "", []string{"the machine did not come to the end: gone"}, 3},
		{"by itself", 0, `{"fatal":"mounting bpf: no such device"}` + "\n", []string{
			"setting the machine up: mounting bpf: no such device", "the machine did not come up: gone",
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, m := testCollector(t)
			require.NoError(t, c.read(t.Context(), strings.NewReader(strings.Join(lines[:test.upTo], "")+test.rest)))
			require.NoError(t, c.end(t.Context(), "gone", "last words"))
			require.Equal(t, test.problems, problems(m))
			require.Len(t, m.Suites, test.suites)
			require.False(t, m.ok())
		})
	}
}

func TestCollectorJudgesTheTaint(t *testing.T) {
	c, m := testCollector(t)
	require.NoError(t, c.read(t.Context(), strings.NewReader(strings.Replace(answers, `{"done":{"Taint":0}}`, `{"done":{"Taint":512}}`, 1))))
	require.Equal(t, []string{"the kernel is tainted: warning"}, problems(m))
}

func TestCollectorRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for _, line := range []string{
		"Segmentation fault\n",
		`{"exit":{"Step":"tests/b"}}` + "\n",
		`{"output":{"Step":"tests/z","Text":"x"}}` + "\n",
	} {
		c, _ := testCollector(t)
		require.Error(t, c.read(t.Context(), strings.NewReader(line)), line)
	}
}

func TestCollectorOfFeatures(t *testing.T) {
	for _, test := range []struct {
		name, stdout, stderr string
		code                 int
		problem              string
	}{
		{"not there yet", "", `unknown command "features" for "revsk"`, 2, ""},
		{"failed", "", "no", 1, "exit code 1"},
		{"cannot run here", `{"schema":"revsk/features/v1","features":[{"name":"y","since":"CONFIG_Y"}]}`, "no", 4, ""},
		{"other schema", `{"schema":"revsk/features/v2"}`, "", 0, `schema "revsk/features/v2"`},
		{"no JSON", "Usage:", "", 0, "invalid character"},
		{
			"missing", `{"schema":"revsk/features/v1","features":[{"name":"x","since":"6.1"},{"name":"y","since":"6.12"}]}`,
			"", 0, "x is not available, though this kernel is new enough",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, m := testCollector(t)
			c.rules.booted = series{6, 1}
			c.features(test.stdout, test.stderr, plan.Exit{Code: test.code})
			if test.problem == "" {
				require.Empty(t, m.Problems)
				return
			}
			require.Len(t, m.Problems, 1)
			require.Contains(t, m.Problems[0].Why, test.problem)
		})
	}
}
