// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Marks of a cell. They are two columns wide on a terminal.
const (
	markGood = "✅"
	markBad  = "❌"
)

// Table prints the report for people: a row per case, then what it comes to. The text is the same on a
// terminal and in a file.
func (r *Report) Table(w io.Writer) error {
	rows := [][]string{{"Case", "Protocol", "IP family", "Type", "Legacy (global hash)", "Storage (on the socket)"}}
	for _, c := range r.Cases {
		rows = append(rows, []string{
			fmt.Sprintf("%4d", c.ID), c.Protocol, c.Family, c.Type,
			c.cellText(c.Legacy), c.cellText(c.Storage.Cell),
		})
	}
	var b strings.Builder
	writeAligned(&b, rows)
	b.WriteByte('\n')
	r.writeSummary(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (c Case) cellText(cell Cell) string {
	switch {
	case c.NotSupported != "":
		return "not supported here"
	case cell.Error != "":
		return markBad + " error"
	case cell.Before == 0:
		return markBad + " nothing was stored"
	case !cell.Cleaned:
		return fmt.Sprintf("%s leaked %d of %d", markBad, cell.After, cell.Before)
	case cell.Live != nil && cell.Live.KnowService < cell.Live.Sockets:
		return fmt.Sprintf("%s %d of %d remember", markBad, cell.Live.KnowService, cell.Live.Sockets)
	case cell.Live != nil:
		return fmt.Sprintf("%s all %d remember", markGood, cell.Live.Sockets)
	}
	return markGood + " cleaned up"
}

func (r *Report) writeSummary(b *strings.Builder) {
	ran := len(r.Cases) - len(r.notSupported())
	legacy, storage := 0, 0
	for _, c := range r.Cases {
		if strings.HasPrefix(c.cellText(c.Legacy), markGood) {
			legacy++
		}
		if strings.HasPrefix(c.cellText(c.Storage.Cell), markGood) {
			storage++
		}
	}
	fmt.Fprintf(b, "Linux %s: of %d cases, the global hash handles %d, socket storage %d.\n",
		r.Kernel, ran, legacy, storage)

	reasons := make(map[string][]string)
	var order []string
	note := func(reason string, id int) {
		if reasons[reason] == nil {
			order = append(order, reason)
		}
		reasons[reason] = append(reasons[reason], strconv.Itoa(id))
	}
	known := knownCases()
	for _, c := range r.Cases {
		if why := known[c.Name].why; why != "" && c.NotSupported == "" {
			note(why, c.ID)
		}
	}
	if len(order) > 0 {
		b.WriteString("\nWhy the hash fails:\n")
	}
	for _, reason := range order {
		fmt.Fprintf(b, "  %s: %s\n", strings.Join(reasons[reason], ", "), reason)
	}

	if skipped := r.notSupported(); len(skipped) > 0 {
		b.WriteString("\nNot supported here:\n")
		for _, c := range skipped {
			fmt.Fprintf(b, "  %d: %s\n", c.ID, c.NotSupported)
		}
	}
	b.WriteByte('\n')
	if problems := r.problems(); len(problems) > 0 {
		b.WriteString("FAILED, not as it has to be:\n")
		for _, p := range problems {
			fmt.Fprintf(b, "  %s\n", p)
		}
	} else {
		b.WriteString("OK: everything is as it has to be.\n")
	}
}

func writeAligned(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			widths[i] = max(widths[i], displayWidth(text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			line.WriteString(text)
			line.WriteString(strings.Repeat(" ", widths[i]-displayWidth(text)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}

// displayWidth is how many columns of a terminal the text takes.
func displayWidth(text string) int {
	return utf8.RuneCountInString(text) + strings.Count(text, markGood) + strings.Count(text, markBad)
}
