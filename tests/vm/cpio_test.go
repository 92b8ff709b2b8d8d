// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type cpioEntry struct {
	name         string
	mode         int64
	major, minor int64
	data         string
}

// readCPIO reads an archive as the kernel does.
func readCPIO(t *testing.T, archive []byte) []cpioEntry {
	t.Helper()
	var entries []cpioEntry
	for at := 0; ; {
		require.Equal(t, "070701", string(archive[at:at+6]))
		field := func(i int) int64 {
			n, err := strconv.ParseInt(string(archive[at+6+8*i:at+14+8*i]), 16, 64)
			require.NoError(t, err)
			return n
		}
		nameSize, size := int(field(11)), int(field(6))
		name := string(archive[at+110 : at+110+nameSize-1])
		require.Zero(t, archive[at+110+nameSize-1])
		data := (at + 110 + nameSize + 3) / 4 * 4
		if name == "TRAILER!!!" {
			require.Len(t, archive, data)
			return entries
		}
		entries = append(entries, cpioEntry{name, field(1), field(9), field(10), string(archive[data : data+size])})
		at = (data + size + 3) / 4 * 4
	}
}

func TestCPIO(t *testing.T) {
	var out bytes.Buffer
	c := newCPIO(&out)
	c.File("/init", 0o755, []byte("12345"))
	c.File("/src/tests/prog/testdata/a", 0o644, nil)
	c.File("/src/tests/prog/b", 0o644, []byte("1234"))
	c.CharDevice("/dev/console", 0o600, 5, 1)
	c.Dir("/proc")
	require.NoError(t, c.Close())
	require.Equal(t, []cpioEntry{
		{"init", 0o100755, 0, 0, "12345"},
		{"src", 0o040755, 0, 0, ""},
		{"src/tests", 0o040755, 0, 0, ""},
		{"src/tests/prog", 0o040755, 0, 0, ""},
		{"src/tests/prog/testdata", 0o040755, 0, 0, ""},
		{"src/tests/prog/testdata/a", 0o100644, 0, 0, ""},
		{"src/tests/prog/b", 0o100644, 0, 0, "1234"},
		{"dev", 0o040755, 0, 0, ""},
		{"dev/console", 0o020600, 5, 1, ""},
		{"proc", 0o040755, 0, 0, ""},
	}, readCPIO(t, out.Bytes()))
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errors.New("no space")
	}
	return len(p), nil
}

func TestCPIOReportsTheFirstError(t *testing.T) {
	c := newCPIO(&brokenWriter{left: 300})
	c.File("/a", 0o644, []byte(strings.Repeat("x", 500)))
	c.File("/b", 0o644, nil)
	require.ErrorContains(t, c.Close(), "no space")
}
