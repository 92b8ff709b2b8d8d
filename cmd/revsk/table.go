// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// count returns a number with the word for what it counts.
func count[T int | int64](n T, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// tableWidth is how wide a table should be at most, in characters.
const tableWidth = 120

// table collects rows and prints them in columns, without blanks at the end of lines.
type table struct {
	rows  [][]string
	lines map[int]string // by the row that follows
}

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = fmt.Sprint(c); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// counted is a row of a report: what was counted, and what it means.
type counted struct {
	name, meaning string
	count         int
}

// counts adds the rows of a report, below their heading.
func (t *table) counts(heading string, rows ...counted) {
	t.row(heading, "COUNT", "MEANING")
	for _, r := range rows {
		t.row(r.name, r.count, r.meaning)
	}
}

// line adds a line that is outside of the columns.
func (t *table) line(text string) {
	if t.lines == nil {
		t.lines = make(map[int]string)
	}
	t.lines[len(t.rows)] = text
}

func (t *table) print(w io.Writer) error {
	text, err := t.text()
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return err
}

// width is the number of characters of the longest line.
func (t *table) width() int {
	width := 0
	// Writing to memory does not fail.
	text, _ := t.text()
	for line := range strings.Lines(text) {
		width = max(width, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
	}
	return width
}

func (t *table) text() (string, error) {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return "", err
	}
	var text strings.Builder
	n := 0
	for line := range strings.Lines(b.String()) {
		if between, ok := t.lines[n]; ok {
			text.WriteString(between + "\n")
		}
		text.WriteString(strings.TrimRight(line, " \n") + "\n")
		n++
	}
	return text.String(), nil
}

// printSections prints tables with an empty line between them. It leaves out those that have no more than a heading.
func printSections(w io.Writer, sections ...table) error {
	separator := ""
	for _, t := range sections {
		if len(t.rows) <= 1 {
			continue
		}
		if _, err := fmt.Fprint(w, separator); err != nil {
			return err
		}
		if err := t.print(w); err != nil {
			return err
		}
		separator = "\n"
	}
	return nil
}
