// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// count writes a number with the word for what it counts.
func count[T int | int64](n T, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

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

func (t *table) print(w io.Writer) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
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
