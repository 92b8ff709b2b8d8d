// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// run runs a shell script and returns what it wrote and how it ended.
func run(t *testing.T, s Step, script string) (stdout, stderr string, exit Exit) {
	t.Helper()
	s.Name, s.Argv = "step", []string{"/bin/sh", "-c", script}
	if s.Timeout == 0 {
		s.Timeout = time.Minute
	}
	ended := false
	s.Run(t.Context(), func(e Event) {
		require.False(t, ended, "an event after the end")
		switch {
		case e.Output != nil && e.Output.Stderr:
			stderr += e.Output.Text
		case e.Output != nil:
			stdout += e.Output.Text
		case e.Exit != nil:
			exit, ended = *e.Exit, true
		}
	}, nil)
	require.True(t, ended)
	require.Equal(t, "step", exit.Step)
	return stdout, stderr, exit
}

func TestStepSeparatesTheOutputsOfACommand(t *testing.T) {
	stdout, stderr, exit := run(t, Step{}, "echo out; echo err >&2; printf rest; exit 3")
	require.Equal(t, "out\nrest", stdout)
	require.Equal(t, "err\n", stderr)
	require.Equal(t, 3, exit.Code)
	require.Empty(t, exit.Error)
}

func TestStepJoinsTheOutputsOfATest(t *testing.T) {
	stdout, stderr, exit := run(t, Step{Test: true}, "echo one; echo two >&2; echo three")
	require.Equal(t, "one\ntwo\nthree\n", stdout)
	require.Empty(t, stderr)
	require.Zero(t, exit.Code)
}

func TestStepKillsTheWholeGroupAtTheTimeout(t *testing.T) {
	stdout, _, exit := run(t, Step{Test: true, Timeout: 3 * time.Second}, "echo begun; sleep 60 & sleep 60")
	require.Less(t, exit.Seconds, (3*time.Second + outputGrace).Seconds(), "nobody holds the output open")
	require.Equal(t, "begun\n", stdout)
	require.Equal(t, -1, exit.Code)
	require.Equal(t, "killed after 3s", exit.Error)
}

func TestStepThatDiesOfASignal(t *testing.T) {
	_, _, exit := run(t, Step{}, "kill -SEGV $$")
	require.Equal(t, -1, exit.Code)
	require.Contains(t, exit.Error, "segmentation fault")
}

func TestStepThatDoesNotStart(t *testing.T) {
	var exit *Exit
	Step{Name: "x", Argv: []string{"/no/such"}, Timeout: time.Minute}.Run(t.Context(), func(e Event) { exit = e.Exit }, nil)
	require.Equal(t, -1, exit.Code)
	require.Contains(t, exit.Error, "no such file")
}

func TestLinesAreBounded(t *testing.T) {
	var got []string
	l := &lines{emit: func(s string) { got = append(got, s) }}
	_, err := l.Write([]byte(strings.Repeat("x", maxText+10)))
	require.NoError(t, err)
	_, err = l.Write([]byte("y\nz"))
	require.NoError(t, err)
	l.flush()
	require.Equal(t, []string{strings.Repeat("x", maxText), strings.Repeat("x", 10) + "y\n", "z"}, got)
}
