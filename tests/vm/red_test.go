// SPDX-License-Identifier: Apache-2.0

//go:build qemu

// These tests boot a kernel, and so need QEMU and a mirror of Debian:
//
//	go test -tags qemu ./tests/vm -run TestRed [-kernel 6.12]
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var redKernel = flag.String("kernel", "6.1", "kernel to boot")

// TestRed sees to it that what must turn a run red does. A package below testdata/red goes wrong in
// one way each.
func TestRed(t *testing.T) {
	for _, test := range []struct {
		pkg  string
		args []string
		want []string
	}{
		{"fail", nil, []string{"1.0: tests/vm/testdata/red/fail: TestThatFails", "as it should",
			"TestWithSubtests/bad", "deep down", " 2/2/0 "}},
		{"warning", nil, []string{"1.0: kernel alarm", "WARNING: CPU: 0 PID: 1 at net/red.c:1", " 1/0/0 "}},
		{"hang", []string{"-suite-timeout", "20s"}, []string{"TestThatHangs", "panic: test timed out after 20s"}},
		{"hang", []string{"-timeout", "90s"}, []string{"TestThatHangs: did not end", "not done after 1m30s"}},
		{"panic", nil, []string{"TestThatPanics: did not end: the machine went down",
			"Kernel panic - not syncing: Attempted to kill init!"}},
		{"skip", nil, []string{"TestThatIsTooLate: skipped as if", "TestThatMustNot: skipped for another reason", " 0/2/1 "}},
		{"none", nil, []string{"red/none: ran no test"}},
		{"exit", nil, []string{"TestThatFailsUnheard", "hidden by TestMain"}},
	} {
		name := test.pkg
		for _, arg := range test.args {
			name += " " + arg
		}
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := []string{"-kernels", *redKernel, "-revsk=false", "-out", t.TempDir(), "-pkgs", "./tests/vm/testdata/red/" + test.pkg}
			code := run(t.Context(), append(args, test.args...), &stdout, &stderr)
			t.Logf("%s\n%s", &stdout, &stderr)
			require.Equal(t, exitFailed, code)
			for _, want := range test.want {
				want = strings.ReplaceAll(want, "1.0:", *redKernel+":")
				require.Contains(t, stdout.String(), want)
			}
			require.NotContains(t, stdout.String(), "smoke: ", "smoke failed, too")
		})
	}
}

// TestRedWithoutTheReleaseHook breaks the loader: it leaves out the hook that frees what a closed socket
// has in the maps. Both the selftest and the suites are to notice on every kernel.
func TestRedWithoutTheReleaseHook(t *testing.T) {
	const file = "../../loader/hooks.go"
	source, err := os.ReadFile(file)
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^\t\{program: sock\.SockProgRevskRelease, .*\n`)
	require.Len(t, line.FindAll(source, -1), 1)
	broken := filepath.Join(t.TempDir(), "hooks.go")
	require.NoError(t, os.WriteFile(broken, line.ReplaceAll(source, nil), 0o644))
	original, err := filepath.Abs(file)
	require.NoError(t, err)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: broken}})
	require.NoError(t, err)
	list := filepath.Join(t.TempDir(), "overlay.json")
	require.NoError(t, os.WriteFile(list, overlay, 0o644))
	t.Setenv("GOFLAGS", "-overlay="+list)

	for _, args := range [][]string{
		{"-pkgs", "./internal/probe"}, // and the selftest
		{"-pkgs", "./tests/kernel", "-run", "^TestReleaseOfManySockets$"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"-kernels", *redKernel}, args...), &stdout, &stderr)
		t.Logf("%s\n%s", &stdout, &stderr)
		require.Equal(t, exitFailed, code)
		require.Regexp(t, "FAIL "+*redKernel+": (selftest: revsk selftest|tests/kernel: TestReleaseOfManySockets)", stdout.String())
	}
}

// TestGreen boots a kernel on which nothing goes wrong.
func TestGreen(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"-kernels", *redKernel, "-revsk=false", "-pkgs", smokePackage}, &stdout, &stderr)
	require.Equal(t, exitOK, code, "%s\n%s", &stdout, &stderr)
}
