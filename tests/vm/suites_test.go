// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSteps(t *testing.T) {
	b := &build{
		Suites: []suite{{Name: "tests/vm/smoke"}, {Name: "tests/prog"}},
		Revsk:  "/work/revsk",
	}
	opts := &options{suiteTimeout: time.Minute}
	steps := b.steps(opts, plain, place{suite: placeInMachine, revsk: revskPath, env: []string{"PATH=/bin"}})
	require.Len(t, steps, 4)
	require.Equal(t, "/src/tests/prog", steps[1].Dir)
	require.Equal(t, []string{
		"/src/tests/prog/suite.test", "-test.v=test2json", "-test.paniconexit0", "-test.timeout=1m0s",
	}, steps[1].Argv)
	require.Equal(t, []string{"PATH=/bin", "REVSK_VM_VARIANT=plain", "REVSK_BIN=/bin/revsk"}, steps[1].Env)
	require.Equal(t, time.Minute+timeoutSlop, steps[1].Timeout)
	require.Equal(t, []string{"/bin/revsk", "selftest", "-o", "json"}, steps[2].Argv)
	require.Equal(t, []string{"/bin/revsk", "features", "-o", "json"}, steps[3].Argv)
}

func TestRunLeavesSmokeWhole(t *testing.T) {
	b := &build{Suites: []suite{{Name: "tests/vm/smoke"}, {Name: "tests/prog"}}, Revsk: "/work/revsk"}
	steps := b.steps(&options{run: "TestX", args: []string{"-y"}}, plain, place{suite: placeInMachine})
	require.Len(t, steps, 2, "one test is asked for, no selftest")
	for _, arg := range []string{"-test.run=TestX", "-y"} {
		require.False(t, slices.Contains(steps[0].Argv, arg))
		require.True(t, slices.Contains(steps[1].Argv, arg))
	}
}

func TestSuitesAreSmallerOnASlowMachine(t *testing.T) {
	b := &build{Suites: []suite{{Name: "tests/kernel"}}}
	for _, slow := range []bool{false, true} {
		steps := b.steps(&options{}, plain, place{suite: placeInMachine, slow: slow})
		require.Equal(t, slow, slices.Contains(steps[0].Argv, "-scale=10"))
	}
}

func TestVariantsChangeThePlan(t *testing.T) {
	for _, v := range variants {
		changed := v.Cmdline != "" || v.NoDiag || v.Adjust != nil
		require.Equal(t, v.Name != plain.Name, changed, v.Name)
	}
}
