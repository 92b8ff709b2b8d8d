// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const profile = `mode: atomic
github.com/revsk/revsk/a/x.go:1.1,2.2 8 3
github.com/revsk/revsk/a/x.go:3.1,4.2 2 0
github.com/revsk/revsk/a/x_bpfel.go:3.1,4.2 90 0
github.com/revsk/revsk/a/b/y.go:1.1,2.2 1 0
github.com/revsk/revsk/a/b/y.go:1.1,2.2 1 1
`

func TestLessCoverageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	input, table := filepath.Join(dir, "profile"), filepath.Join(dir, "table.md")
	require.NoError(t, os.WriteFile(input, []byte(profile), 0o600))
	const head = "# Coverage\n\n| package | statements run |\n|---|---|\n"
	for rows, want := range map[string]string{
		"| `a` | 80 % |\n| `a/b` | 100 % |\n":                "",
		"| `a` | 83 % |\n| `a/b` | 97 % |\n| `c` | 50 % |\n": "",
		"| `a` | 84 % |\n| `a/b` | 100 % |\n":                "a: 80 %, was 84 %",
		"| `a` | 80 % |\n":                                   "",
	} {
		require.NoError(t, os.WriteFile(table, []byte(head+rows), 0o600))
		err := run(input, table, false)
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
	require.NoError(t, os.WriteFile(table, []byte(head+"| `a` | 90 % |\n| `c` | 50 % |\n"), 0o600))
	require.NoError(t, run(input, table, true))
	text, err := os.ReadFile(table)
	require.NoError(t, err)
	require.Equal(t, head+"| `a` | 80 % |\n| `a/b` | 100 % |\n| `c` | 50 % |\n", string(text))
	require.NoError(t, run(input, table, false))
}
