// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/revnat"
)

// age returns how long ago the time of the tuple is; false if that is unknown.
func age(t *revnat.Tuple, now time.Duration) (time.Duration, bool) {
	return max(0, (now - t.Time).Truncate(time.Second)), t.Time != 0
}

func ageText(t *revnat.Tuple, now time.Duration) string {
	if age, known := age(t, now); known {
		return age.String()
	}
	return "-"
}

// socketColumns are the columns of the table of sockets.
var socketColumns = []struct {
	name string
	wide bool // with -o wide only
}{
	{"PROTO", false}, {"STATE", false}, {"LOCAL", true}, {"PEER", false}, {"SERVICE", false}, {"REV-NAT", true}, {"BACKEND-ID", true},
	{"HOW", false}, {"AGE", false}, {"MIGRATED", true}, {"NETNS", false}, {"COOKIE", true}, {"INODE", true}, {"PROCESS", false},
}

// socketTable has a line for each tuple of many sockets.
type socketTable struct {
	wide   bool
	now    time.Duration
	wanted *inspect.Filter
	widths []int
	owners map[inspect.Process]string // the texts of processes that are the only owner of a socket
	// The last line, and where in it the cell of each column ends.
	line []byte
	ends []int
}

// printSockets prints a line for each tuple that is wanted. It goes through the sockets twice, the first time to see how wide
// the columns are.
func printSockets(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter, wide bool) error {
	t := &socketTable{
		wide: wide, now: now, wanted: wanted, owners: make(map[inspect.Process]string),
		widths: make([]int, len(socketColumns)), ends: make([]int, len(socketColumns)),
	}
	head := func() {
		t.line = t.line[:0]
		for i, c := range socketColumns {
			t.line = append(t.line, c.name...)
			t.ends[i] = len(t.line)
		}
	}
	head()
	t.measure()
	if err := t.eachLine(sockets, t.measure); err != nil {
		return err
	}
	stacked := t.isStacked()
	head()
	t.printLine(out, stacked)
	return t.eachLine(sockets, func() { t.printLine(out, stacked) })
}

// eachLine makes the lines, one after the other.
func (t *socketTable) eachLine(sockets iter.Seq2[inspect.Socket, error], do func()) error {
	for s, err := range sockets {
		if err != nil {
			return err
		}
		t.linesOf(&s, do)
	}
	return nil
}

func (t *socketTable) linesOf(s *inspect.Socket, do func()) {
	for role, tuple := range s.Tuples() {
		if t.wanted.WantsTuple(s, role, tuple) {
			t.makeLine(s, role, tuple)
			do()
		}
	}
}

func (t *socketTable) makeLine(s *inspect.Socket, role inspect.Role, tuple *revnat.Tuple) {
	t.line = t.line[:0]
	for column, c := range socketColumns {
		if begin := len(t.line); !c.wide || t.wide {
			t.line = t.appendCell(t.line, column, s, role, tuple)
			if len(t.line) == begin {
				t.line = append(t.line, '-')
			}
		}
		t.ends[column] = len(t.line)
	}
}

func (t *socketTable) measure() {
	begin := 0
	for column, end := range t.ends {
		t.widths[column] = max(t.widths[column], utf8.RuneCount(t.line[begin:end]))
		begin = end
	}
}

func (t *socketTable) appendCell(b []byte, column int, s *inspect.Socket, role inspect.Role, tuple *revnat.Tuple) []byte {
	switch socketColumns[column].name {
	case "PROTO":
		return append(b, s.Protocol.String()...)
	case "STATE":
		return append(b, s.StateName()...)
	case "LOCAL":
		return s.Local.AppendTo(b)
	case "PEER":
		return tuple.Peer.AppendTo(b)
	case "SERVICE":
		return tuple.Service.AppendTo(b)
	case "REV-NAT":
		return strconv.AppendUint(b, uint64(tuple.RevNATIndex), 10)
	case "BACKEND-ID":
		return appendKnown(b, uint64(tuple.BackendID))
	case "HOW":
		return append(b, role...)
	case "AGE":
		return append(b, ageText(tuple, t.now)...)
	case "MIGRATED":
		if tuple.Migrated {
			return append(b, "yes"...)
		}
		return append(b, "no"...)
	case "NETNS":
		return append(b, netnsText(s.NetNS)...)
	case "COOKIE":
		return appendKnown(b, s.Cookie)
	case "INODE":
		return appendKnown(b, s.Inode)
	}
	return append(b, t.ownersText(s.Owners)...)
}

// appendKnown adds a number; nothing for 0, which means that it is unknown.
func appendKnown(b []byte, n uint64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendUint(b, n, 10)
}

func (t *socketTable) ownersText(owners []inspect.Process) string {
	if len(owners) != 1 {
		return ownersText(owners, t.wide)
	}
	text, ok := t.owners[owners[0]]
	if !ok {
		text = processText(owners[0])
		t.owners[owners[0]] = text
	}
	return text
}

// If the table would be too wide, these share a column: the service is on a line of its own, below the peer.
const peerColumn, serviceColumn = 3, 4

// isStacked says whether the lines would be wider than a table should be.
func (t *socketTable) isStacked() bool {
	const processWidth = 24 // more of the last column may be cut
	total := 0
	for i, c := range socketColumns[:len(socketColumns)-1] {
		if !c.wide {
			total += t.widths[i] + 2
		}
	}
	total += min(t.widths[len(socketColumns)-1], processWidth)
	return !t.wide && total > tableWidth
}

// printLine prints the cells of the line in columns. Without -o wide it cuts the line at the width of a table.
func (t *socketTable) printLine(out *bufio.Writer, stacked bool) {
	w := lineWriter{Writer: out, room: tableWidth}
	if t.wide {
		w.room = len(t.line) + len(t.widths)*slices.Max(t.widths)
	}
	var below []byte
	indent, begin := 0, 0
	for column, end := range t.ends {
		c := t.line[begin:end]
		begin = end
		switch width := t.widths[column]; {
		case socketColumns[column].wide && !t.wide:
		case stacked && column == serviceColumn:
			below = c
		case stacked && column == peerColumn:
			indent = tableWidth - w.room + w.gap
			w.cell(c, max(width, t.widths[serviceColumn]))
		default:
			w.cell(c, width)
		}
	}
	out.WriteByte('\n')
	if stacked {
		w = lineWriter{Writer: out, room: tableWidth, gap: indent}
		w.cell(below, 0)
		out.WriteByte('\n')
	}
}

// lineWriter writes cells, without blanks at the end of the line.
type lineWriter struct {
	*bufio.Writer
	gap  int // before the next cell
	room int // for how many characters
}

func (w *lineWriter) cell(c []byte, width int) {
	const blanks = "                                                                "
	if w.room -= w.gap; w.room <= 0 {
		return
	}
	for ; w.gap > 0; w.gap -= min(w.gap, len(blanks)) {
		w.WriteString(blanks[:min(w.gap, len(blanks))])
	}
	n := utf8.RuneCount(c)
	if n > w.room {
		c = append([]byte(string([]rune(string(c))[:w.room-1])), "…"...)
		n = w.room
	}
	w.Write(c)
	w.room -= n
	w.gap = max(0, width-n) + 2
}

func netnsText(ns inspect.NetNS) string {
	if ns.Name != "" {
		return cell(ns.Name)
	}
	return strconv.FormatUint(ns.Inode, 10)
}

// ownersText names all processes, or the first one and how many more there are.
func ownersText(owners []inspect.Process, all bool) string {
	switch n := len(owners); {
	case n == 0:
		return ""
	case n > 1 && !all:
		return fmt.Sprintf("%s+%d", processText(owners[0]), n-1)
	}
	var texts []string
	for _, p := range owners {
		texts = append(texts, processText(p))
	}
	return strings.Join(texts, ",")
}

func processText(p inspect.Process) string { return fmt.Sprintf("%d/%s", p.ID, cell(p.Command)) }

// cell is printable, with the characters replaced that separate the cells of a table and processes.
func cell(s string) string { return cellReplacer.Replace(printable(s)) }

var cellReplacer = strings.NewReplacer(" ", "?", ",", "?")

// printable replaces characters that could control a terminal, in a text that a process has chosen for itself.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
