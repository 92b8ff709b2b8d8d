// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// count writes a number with the word for what it counts.
func count[T int | int64](n T, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// tableWidth is what a table should not exceed.
const tableWidth = 120

// table collects rows and prints them in columns, without blanks at the end of lines.
type table struct {
	rows [][]string
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

// line adds a line that is outside of the columns.
func (t *table) line(text string) { t.rows = append(t.rows, []string{text}) }

func (t *table) print(w io.Writer) error {
	_, err := io.WriteString(w, t.text())
	return err
}

// width is the number of characters of the longest line.
func (t *table) width() int {
	width := 0
	for line := range strings.Lines(t.text()) {
		width = max(width, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
	}
	return width
}

func (t *table) text() string {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row[:len(row)-1] {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var text, line strings.Builder
	for _, row := range t.rows {
		line.Reset()
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]+2-utf8.RuneCountInString(cell)))
			}
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return text.String()
}

// printSections prints tables with an empty line between them. One that has a heading at most is left out.
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
