// SPDX-License-Identifier: Apache-2.0

//go:build qemu

// These tests boot a kernel, and so need QEMU and a mirror of Debian:
//
//	go test -tags qemu ./tests/vm -run TestRed [-kernel 6.12]
package main

import (
	"bytes"
	"flag"
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

// TestGreen boots a kernel on which nothing goes wrong.
func TestGreen(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"-kernels", *redKernel, "-revsk=false", "-pkgs", smokePackage}, &stdout, &stderr)
	require.Equal(t, exitOK, code, "%s\n%s", &stdout, &stderr)
}
