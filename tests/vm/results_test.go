// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/revsk/revsk/tests/vm/plan"
	"github.com/stretchr/testify/require"
)

func judgeText(t *testing.T, text string, exit plan.Exit, r rules) suiteResult {
	t.Helper()
	events, err := testToJSON(t.Context(), text, "example.com/suite", exit.Seconds)
	require.NoError(t, err)
	return judge("tests/suite", events, exit, r)
}

func whatAndWhy(s suiteResult) (all []string) {
	for _, f := range s.Failures {
		all = append(all, f.What+"|"+f.Why)
	}
	return all
}

func TestJudge(t *testing.T) {
	run, pass, fail, skip := testMark+"=== RUN   ", testMark+"--- PASS: ", testMark+"--- FAIL: ", testMark+"--- SKIP: "
	const end = " (0.01s)\n"
	for name, test := range map[string]struct {
		text                    string
		exit                    plan.Exit
		rules                   rules
		passed, failed, skipped int
		failures                []string
	}{
		"all pass": {
			text:   run + "TestA\n" + pass + "TestA" + end + run + "TestB\n" + pass + "TestB" + end + testMark + "PASS\n",
			passed: 2,
		},
		"tests with subtests are not counted": {
			text: run + "TestA\n" + run + "TestA/x\n" + run + "TestA/y\n" +
				pass + "TestA" + end + "    " + pass + "TestA/x" + end + "    " + pass + "TestA/y" + end + testMark + "PASS\n",
			passed: 2,
		},
		"a test with a slash in its name is no other's subtest": {
			text: run + "TestA\n" + run + "TestA/10.0.0.0/8\n" +
				pass + "TestA" + end + "    " + pass + "TestA/10.0.0.0/8" + end + testMark + "PASS\n",
			passed: 1,
		},
		"a failure below is counted once": {
			text: run + "TestA\n" + run + "TestA/x\n" + run + "TestA/y\n" +
				fail + "TestA" + end + "    " + pass + "TestA/x" + end + "    " + fail + "TestA/y" + end + testMark + "FAIL\n",
			exit:   plan.Exit{Code: 1},
			passed: 1, failed: 1, failures: []string{"TestA/y|"},
		},
		"a test that fails though those below pass": {
			text: run + "TestA\n" + run + "TestA/x\n" + fail + "TestA" + end + "    " + pass + "TestA/x" + end + testMark + "FAIL\n",
			exit: plan.Exit{Code: 1}, passed: 1, failed: 1, failures: []string{"TestA|"},
		},
		"a skip with a right to": {
			text:    run + "TestA\n    a_test.go:1: requires Linux 6.12\n" + skip + "TestA" + end + testMark + "PASS\n",
			skipped: 1,
		},
		"a skip without": {
			text:   run + "TestA\n    a_test.go:1: no root\n" + skip + "TestA" + end + testMark + "PASS\n",
			failed: 1, failures: []string{`TestA|skipped for another reason than "requires Linux X.Y"`},
		},
		"killed in a test": {
			text:   run + "TestA\n" + pass + "TestA" + end + run + "TestB\n",
			exit:   plan.Exit{Code: -1, Error: "killed after 5m0s"},
			passed: 1, failed: 1, failures: []string{"TestB|did not end: killed after 5m0s"},
		},
		"killed between tests": {
			text:   run + "TestA\n" + pass + "TestA" + end,
			exit:   plan.Exit{Code: -1, Error: "killed after 5m0s"},
			passed: 1, failed: 1, failures: []string{"tests/suite|killed after 5m0s"},
		},
		"left a process behind": {
			text:   run + "TestA\n" + pass + "TestA" + end + testMark + "PASS\n",
			exit:   plan.Exit{Error: "left a process behind"},
			passed: 1, failed: 1, failures: []string{"tests/suite|left a process behind"},
		},
		"TestMain fails": {
			text:   run + "TestA\n" + pass + "TestA" + end + testMark + "PASS\nleaked descriptors\n",
			exit:   plan.Exit{Code: 1},
			passed: 1, failed: 1, failures: []string{"tests/suite|exit code 1, though no test failed"},
		},
		"no test": {
			text:   "testing: warning: no tests to run\n" + testMark + "PASS\n",
			failed: 1, failures: []string{"tests/suite|ran no test"},
		},
		"no test matches": {
			text:  "testing: warning: no tests to run\n" + testMark + "PASS\n",
			rules: rules{filtered: true},
		},
		"exits early": {
			text:   run + "TestA\n" + pass + "TestA" + end,
			passed: 1, failed: 1, failures: []string{"tests/suite|ended without saying PASS"},
		},
		"nothing at all": {
			failed: 1, failures: []string{"tests/suite|ran no test"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.rules.booted = series{6, 1}
			s := judgeText(t, test.text, test.exit, test.rules)
			require.Equal(t, test.failures, whatAndWhy(s))
			require.Equal(t, []int{test.passed, test.failed, test.skipped}, []int{s.Passed, s.Failed, s.Skipped})
		})
	}
}

func TestJudgeCommand(t *testing.T) {
	require.Empty(t, judgeCommand("selftest", `{"ok":true}`, "progress", plan.Exit{}).Failures)
	for _, test := range []struct {
		stdout, why string
		exit        plan.Exit
	}{
		{`{}`, "exit code 1", plan.Exit{Code: 1}},
		{`{}`, "killed", plan.Exit{Code: -1, Error: "killed"}},
		{"Usage: revsk", "its output is not JSON", plan.Exit{}},
		{"", "its output is not JSON", plan.Exit{}},
	} {
		s := judgeCommand("selftest", test.stdout, " why", test.exit)
		require.Equal(t, []failure{{"revsk selftest", test.why, test.stdout + " why"}}, s.Failures)
		require.Equal(t, 1, s.Failed)
	}
}
