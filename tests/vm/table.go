// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// writeReport writes what failed and then the table.
func writeReport(w io.Writer, results []*machineResult) error {
	var b strings.Builder
	for _, m := range results {
		for _, s := range m.Suites {
			for _, f := range s.Failures {
				writeFailure(&b, m.title()+": "+s.Name, f)
			}
		}
		for _, f := range m.Problems {
			writeFailure(&b, m.title(), f)
		}
	}
	writeTable(&b, tableRows(results))
	_, err := io.WriteString(w, b.String())
	return err
}

func writeFailure(b *strings.Builder, where string, f failure) {
	fmt.Fprintf(b, "FAIL %s: %s", where, f.What)
	if f.Why != "" {
		fmt.Fprintf(b, ": %s", f.Why)
	}
	b.WriteString("\n")
	for line := range strings.Lines(f.Output) {
		fmt.Fprintf(b, "    %s\n", strings.TrimRight(line, "\n"))
	}
	b.WriteString("\n")
}

// tableRows is a row for each machine and a column for each suite. A cell is
// passed/failed/skipped and seconds, of a command ok or FAIL and seconds.
func tableRows(results []*machineResult) [][]string {
	suites := suiteNames(results)
	header := []string{"KERNEL", "RELEASE", "VARIANT"}
	for _, name := range suites {
		header = append(header, strings.ToUpper(columnName(name, suites)))
	}
	rows := [][]string{append(header, "SECONDS", "RESULT")}
	for _, m := range results {
		row := []string{m.Name, orDash(m.Release), m.Variant}
		for _, name := range suites {
			row = append(row, cell(m, name))
		}
		row = append(row, fmt.Sprintf("%.0f", m.Seconds), verdict(m))
		rows = append(rows, row)
	}
	return rows
}

func suiteNames(results []*machineResult) []string {
	var names []string
	for _, m := range results {
		for _, s := range m.Suites {
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
	}
	return names
}

// columnName is the last part of a suite's name where that is enough to know it by.
func columnName(name string, all []string) string {
	base := path.Base(name)
	for _, other := range all {
		if other != name && path.Base(other) == base {
			return name
		}
	}
	return base
}

func cell(m *machineResult, suite string) string {
	i := slices.IndexFunc(m.Suites, func(s suiteResult) bool { return s.Name == suite })
	if i < 0 {
		return "-"
	}
	s := m.Suites[i]
	switch {
	case s.Command && s.Failed == 0:
		return fmt.Sprintf("ok %.1fs", s.Seconds)
	case s.Command:
		return fmt.Sprintf("FAIL %.1fs", s.Seconds)
	}
	return fmt.Sprintf("%d/%d/%d %.1fs", s.Passed, s.Failed, s.Skipped, s.Seconds)
}

// verdict says in few words where to look.
func verdict(m *machineResult) string {
	if m.ok() {
		return "ok"
	}
	var why []string
	for _, s := range m.Suites {
		if len(s.Failures) > 0 {
			why = append(why, path.Base(s.Name))
		}
	}
	for _, p := range m.Problems {
		if !slices.Contains(why, p.What) {
			why = append(why, p.What)
		}
	}
	return "FAIL: " + strings.Join(why, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// writeTable aligns the columns.
func writeTable(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			fmt.Fprintf(&line, "%-*s", widths[i]+2, text)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
