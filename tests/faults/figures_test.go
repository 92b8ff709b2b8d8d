// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// figure logs what a test has counted and, where a document was named, writes it there, between the markers of that
// name.
func figure(t *testing.T, name, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Log(text)
	if *document == "" || t.Failed() {
		return
	}
	old, err := os.ReadFile(*document)
	require.NoError(t, err)
	begin, end := "<!-- "+name+" -->", "<!-- /"+name+" -->"
	between := regexp.MustCompile(`(?s)` + regexp.QuoteMeta(begin) + `.*` + regexp.QuoteMeta(end))
	require.True(t, between.Match(old), "%s has no %s", *document, begin)
	changed := between.ReplaceAllLiteralString(string(old), begin+"\n"+text+"\n"+end)
	require.NoError(t, os.WriteFile(*document, []byte(changed), 0o644))
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func describeCounts(counts map[string]int) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, thousands(counts[key])+" "+key)
	}
	return strings.Join(parts, ", ")
}
