// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOptions(t *testing.T) {
	t.Setenv("REVSK_VM_CACHE", "/cache")
	opts, err := parseOptions([]string{"-kernels", "5.10, running\n6.1", "-variants", "plain,nobtf", "-pkgs", "./a ./b"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []string{"5.10", "running", "6.1"}, opts.kernels)
	require.Equal(t, "nobtf", opts.variants[1].Name)
	require.Equal(t, []string{"./a", "./b"}, opts.packages)
	require.Equal(t, "/cache", opts.cache)

	opts, err = parseOptions([]string{"-variants", "all", "-cache", "/other"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, words(defaultKernels), opts.kernels)
	require.Len(t, opts.variants, len(variants))
	require.Equal(t, "/other", opts.cache)
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-nonsense"}, {"6.1"}, {"-variants", "nosuch"}, {"-kernels", ""}, {"-parallel", "0"},
		{"-docs", "x", "-run", "TestX"}, {"-accel", "hax"},
	} {
		var stderr bytes.Buffer
		require.Equal(t, exitUsage, run(t.Context(), args, io.Discard, &stderr), "%v", args)
		require.NotEmpty(t, stderr.String())
	}
}

func TestHelpNamesEveryVariant(t *testing.T) {
	var stderr bytes.Buffer
	require.Equal(t, exitOK, run(t.Context(), []string{"--help"}, io.Discard, &stderr))
	for _, v := range variants {
		require.Contains(t, stderr.String(), v.Name)
		require.Contains(t, stderr.String(), v.About)
	}
}

func TestRequireMatch(t *testing.T) {
	smoke := suiteResult{Name: "tests/vm/smoke", Passed: 11}
	none := &machineResult{Suites: []suiteResult{smoke, {Name: "loader"}}}
	one := &machineResult{Suites: []suiteResult{smoke, {Name: "loader", Passed: 1}}}
	requireMatch([]*machineResult{none, one}, "TestX")
	require.Equal(t, []string{"no test matches: TestX"}, problems(none))
	require.True(t, one.ok())
}

func TestHasVirtualisation(t *testing.T) {
	require.True(t, hasVirtualisation("processor\t: 0\nflags\t\t: fpu vmx sse\n"))
	require.True(t, hasVirtualisation("flags\t\t: fpu svm\n"))
	require.False(t, hasVirtualisation("flags\t\t: fpu svm_lock sse\nvmx flags\t: vnmi\n"))
	require.False(t, hasVirtualisation(""))
}
