// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is committed gives the committed tables, and is not longer than that takes.
func TestCommittedResults(t *testing.T) {
	const docs = "../../docs/"
	b, err := os.ReadFile(docs + "benchmarks.json")
	require.NoError(t, err)
	r := new(report)
	require.NoError(t, json.Unmarshal(b, r))

	again := filepath.Join(t.TempDir(), "benchmarks.json")
	require.NoError(t, r.write(again))
	rewritten, err := os.ReadFile(again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b, rewritten), "make bench, or tests/bench -from FILE -json FILE, writes it")

	tables := filepath.Join(t.TempDir(), "benchmarks-results.md")
	require.NoError(t, r.writeMarkdown(tables))
	have, err := os.ReadFile(tables)
	require.NoError(t, err)
	want, err := os.ReadFile(docs + "benchmarks-results.md")
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, have), "the tables are not those of benchmarks.json")
}
