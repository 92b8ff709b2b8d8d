// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Relative to the directory of this test.
const root = "../.."

// tests are the test functions in these directories of the project, by name.
func testFunctions(t *testing.T, dirs ...string) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		require.NoError(t, err)
		require.NotEmpty(t, files, dir)
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, d := range parsed.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
					found[f.Name.Name] = true
				}
			}
		}
	}
	return found
}

// tableRows are the rows of the tables in a document whose first cell matches, without its head.
func tableRows(t *testing.T, document string, first *regexp.Regexp) (rows [][]string) {
	t.Helper()
	f, err := os.Open(filepath.Join(root, document))
	require.NoError(t, err)
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		cells := strings.Split(strings.Trim(sc.Text(), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if strings.HasPrefix(sc.Text(), "|") && first.MatchString(cells[0]) {
			rows = append(rows, cells)
		}
	}
	require.NoError(t, sc.Err())
	return rows
}

var (
	number     = regexp.MustCompile(`^[A-Z][0-9]+$`)
	quoted     = regexp.MustCompile("`([^`]+)`")
	branchTest = regexp.MustCompile(`^TestBranch([A-Z][0-9]+)_`)
)

// Every branch that docs/branches.md numbers has a test with its number, and what the document says of
// functions, constants and tests is there.
func TestBranchList(t *testing.T) {
	functions := testFunctions(t, "tests/kernel", "tests/prog")
	tested := make(map[string][]string)
	for name := range functions {
		if m := branchTest.FindStringSubmatch(name); m != nil {
			tested[m[1]] = append(tested[m[1]], name)
		}
	}
	source := readAll(t, "bpf/lib/*.h", "bpf/sock/*.c")

	listed := make(map[string]bool)
	for _, row := range tableRows(t, "docs/branches.md", number) {
		require.Len(t, row, 5, "cells of %s", row[0])
		n := row[0]
		assert.False(t, listed[n], "%s is listed twice", n)
		listed[n] = true
		assert.NotEmpty(t, tested[n], "branch %s has no test", n)
		for _, m := range quoted.FindAllStringSubmatch(row[2]+row[3], -1) {
			assert.Regexp(t, `\b`+regexp.QuoteMeta(m[1])+`\b`, source, "%s in the sources of the datapath, for %s", m[1], n)
		}
		var named []string
		for _, m := range quoted.FindAllStringSubmatch(row[4], -1) {
			assert.True(t, functions[m[1]], "%s, a test of %s, does not exist", m[1], n)
			named = append(named, m[1])
		}
		assert.Subset(t, named, tested[n], "tests of %s that are not listed", n)
	}
	for n := range tested {
		assert.True(t, listed[n], "%s has a test but is not listed", n)
	}
	assert.Equal(t, wantedNumbers(), slices.SortedFunc(maps.Keys(listed), strings.Compare))
}

// wantedNumbers are the numbers of the branches; a document from which one is lost is noticed.
func wantedNumbers() []string {
	numbers := strings.Fields("C1 C2 S1 F1 F2 F3 F4 F5 F6 F7 F9 F10 F11 F12 F13 F14 F15 F16 F18 F19 " +
		"V1 V2 V3 R2 R3 R4 R5 R6 B2 B3 B4 H1 H2 X1 X2 X3 X4")
	slices.Sort(numbers)
	return numbers
}

func readAll(t *testing.T, patterns ...string) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			all.Write(b)
		}
	}
	return all.String()
}

// pages are the documents for people, relative to the root.
func pages(t *testing.T) (all []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	require.NotEmpty(t, found)
	for _, page := range found {
		all = append(all, filepath.Join("docs", filepath.Base(page)))
	}
	return append(all, "README.md")
}

// Every test that docs/differences.md names exists, and every test of a difference is named.
func TestDifferencesList(t *testing.T) {
	functions := testFunctions(t, "tests/kernel", "tests/prog", "inspect")
	document := readAll(t, "docs/differences.md")
	for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9_]+)`").FindAllStringSubmatch(document, -1) {
		assert.True(t, functions[m[1]], "%s does not exist", m[1])
	}
	for name := range functions {
		if strings.HasPrefix(name, "TestBranchDifference") {
			assert.Contains(t, document, "`"+name+"`")
		}
	}
}

// The tests that the documentation names as its evidence exist.
func TestDocumentationNamesTestsThatExist(t *testing.T) {
	functions := testFunctions(t, "agent", "bpf/iter", "cmd/revsk", "deploy/tests", "inspect", "loader", "migrate", "tests/agent", "tests/clients", "tests/docs",
		"tests/faults", "tests/kernel", "tests/prog")
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9_]+)`").FindAllStringSubmatch(readAll(t, page), -1) {
			assert.True(t, functions[m[1]], "%s: %s does not exist", page, m[1])
		}
	}
}

// Files that documents name exist, and have the names that the documents say are in them.
func TestDocumentationNamesFilesThatExist(t *testing.T) {
	folders := "bpf|cmd|docs|inspect|internal|lbmap|loader|migrate|revnat|selftest|tests|tools"
	path := regexp.MustCompile("(?:`([A-Za-z_][A-Za-z0-9_]*)`,? in )?`((?:" + folders + ")/[A-Za-z0-9_./-]+)`")
	for _, page := range pages(t) {
		for _, m := range path.FindAllStringSubmatch(readAll(t, page), -1) {
			st, err := os.Stat(filepath.Join(root, m[2]))
			if !assert.NoError(t, err, page) || st.IsDir() || m[1] == "" {
				continue
			}
			assert.Regexp(t, `\b`+m[1]+`\b`, readAll(t, m[2]), "%s: %s in %s", page, m[1], m[2])
		}
	}
}

// Every page is in the index, and says for whom it is.
func TestDocumentationIndex(t *testing.T) {
	index := readAll(t, "docs/README.md")
	for _, page := range pages(t) {
		name := filepath.Base(page)
		if name == "README.md" {
			continue
		}
		assert.Contains(t, index, "]("+name+")")
		assert.Contains(t, readAll(t, page), "\n*For ", name)
	}
}
