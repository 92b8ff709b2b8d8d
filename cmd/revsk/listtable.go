// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/revnat"
)

// age is the time since that of the tuple; false if it is unknown.
func age(t *revnat.Tuple, now time.Duration) (time.Duration, bool) {
	return max(0, (now - t.Time).Truncate(time.Second)), t.Time != 0
}

func ageText(t *revnat.Tuple, now time.Duration) string {
	if age, known := age(t, now); known {
		return age.String()
	}
	return "-"
}

// socketColumns are those of the table of sockets.
var socketColumns = []struct {
	name string
	wide bool // with -o wide only
}{
	{"PROTO", false}, {"STATE", false}, {"LOCAL", true}, {"PEER", false}, {"SERVICE", false}, {"REV-NAT", true}, {"BACKEND-ID", true},
	{"HOW", false}, {"AGE", false}, {"MIGRATED", true}, {"NETNS", false}, {"COOKIE", true}, {"INODE", true}, {"PROCESS", false},
}

// socketTable has a line for each tuple of many sockets, sorted by socket. It keeps little more than the text.
type socketTable struct {
	wide bool
	// A row is the length of a key, the key, and the lines of a socket; cells end with a tab, and lines with a line feed.
	rows   arena
	at     []arenaPosition
	widths []int
	netns  map[inspect.NetNS]uint32
	owners map[inspect.Process]string // the text of those that are alone
	row    []byte                     // scratch memory
}

// printSockets prints a line for each tuple that is wanted, sorted.
func printSockets(out *bufio.Writer, sockets iter.Seq2[inspect.Socket, error], now time.Duration, wanted *inspect.Filter, wide bool) error {
	t := newSocketTable(wide)
	defer t.rows.free()
	for s, err := range sockets {
		if err == nil {
			err = t.add(&s, now, wanted)
		}
		if err != nil {
			return err
		}
	}
	return t.print(out)
}

func newSocketTable(wide bool) *socketTable {
	t := &socketTable{wide: wide, netns: make(map[inspect.NetNS]uint32), owners: make(map[inspect.Process]string), widths: make([]int, len(socketColumns))}
	for i, c := range socketColumns {
		t.widths[i] = len(c.name)
	}
	return t
}

func (t *socketTable) add(s *inspect.Socket, now time.Duration, wanted *inspect.Filter) error {
	key := t.appendKey(append(t.row[:0], 0), s)
	row := key
	row[0] = byte(len(key))
	for role, tuple := range s.Tuples() {
		if wanted.WantsTuple(s, role, tuple) {
			row = t.appendLine(row, s, role, tuple, now)
		}
	}
	t.row = row
	if len(row) == len(key) {
		return nil
	}
	at, err := t.rows.add(row)
	t.at = append(t.at, at)
	return err
}

// appendKey adds bytes that sort as [inspect.Socket.Compare] does; the namespace is a number, which print replaces.
func (t *socketTable) appendKey(b []byte, s *inspect.Socket) []byte {
	number, ok := t.netns[s.NetNS]
	if !ok {
		number = uint32(len(t.netns))
		t.netns[s.NetNS] = number
	}
	b = binary.BigEndian.AppendUint32(b, number)
	b = binary.BigEndian.AppendUint16(b, uint16(s.Protocol))
	b = append(b, byte(s.Family))
	b = appendAddress(b, s.Local)
	b = appendAddress(b, s.Peer)
	b = binary.BigEndian.AppendUint64(b, s.Cookie)
	return binary.BigEndian.AppendUint64(b, s.Inode)
}

// appendAddress adds bytes that sort as the addresses do.
func appendAddress(b []byte, a netip.AddrPort) []byte {
	b = append(b, byte(a.Addr().BitLen()))
	if a.Addr().Is4() {
		four := a.Addr().As4()
		b = append(b, four[:]...)
	} else if a.Addr().Is6() {
		six := a.Addr().As16()
		b = append(b, six[:]...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

func (t *socketTable) appendLine(b []byte, s *inspect.Socket, role inspect.Role, tuple *revnat.Tuple, now time.Duration) []byte {
	for column, c := range socketColumns {
		begin := len(b)
		if !c.wide || t.wide {
			b = t.appendCell(b, column, s, role, tuple, now)
			if len(b) == begin {
				b = append(b, '-')
			}
		}
		t.widths[column] = max(t.widths[column], utf8.RuneCount(b[begin:]))
		b = append(b, '\t')
	}
	return append(b, '\n')
}

func (t *socketTable) appendCell(b []byte, column int, s *inspect.Socket, role inspect.Role, tuple *revnat.Tuple, now time.Duration) []byte {
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
		return append(b, ageText(tuple, now)...)
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

// appendKnown adds a number, of which 0 means that it is not known.
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

func (t *socketTable) print(out *bufio.Writer) error {
	t.rankNamespaces()
	slices.SortFunc(t.at, func(a, b arenaPosition) int {
		return bytes.Compare(rowKey(t.rows.get(a)), rowKey(t.rows.get(b)))
	})
	var head []byte
	for _, c := range socketColumns {
		head = append(append(head, c.name...), '\t')
	}
	stacked := t.isStacked()
	t.printLine(out, append(head, '\n'), stacked)
	for _, at := range t.at {
		row := t.rows.get(at)
		for line := range bytes.Lines(row[row[0]:]) {
			t.printLine(out, line, stacked)
		}
		// It remembers the errors of all that was written.
		if _, err := out.Write(nil); err != nil {
			return err
		}
	}
	return nil
}

// rowKey is what rows are sorted by.
func rowKey(row []byte) []byte { return row[1:row[0]] }

// rankNamespaces replaces the numbers of namespaces in the keys by their ranks.
func (t *socketTable) rankNamespaces() {
	sorted := make([]inspect.NetNS, 0, len(t.netns))
	for ns := range t.netns {
		sorted = append(sorted, ns)
	}
	slices.SortFunc(sorted, func(a, b inspect.NetNS) int {
		return (&inspect.Socket{NetNS: a}).Compare(&inspect.Socket{NetNS: b})
	})
	rank := make([]uint32, len(sorted))
	for i, ns := range sorted {
		rank[t.netns[ns]] = uint32(i)
	}
	for _, at := range t.at {
		key := rowKey(t.rows.get(at))
		binary.BigEndian.PutUint32(key, rank[binary.BigEndian.Uint32(key)])
	}
}

// The columns that share one where a table would be too wide: the service is on a line of its own, below the peer.
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

// printLine prints the cells of a line in columns. What is beyond the width of a table is cut, unless it is a wide
// one.
func (t *socketTable) printLine(out *bufio.Writer, line []byte, stacked bool) {
	w := lineWriter{Writer: out, room: tableWidth}
	if t.wide {
		w.room = len(line) + len(t.widths)*slices.Max(t.widths)
	}
	var below []byte
	indent := 0
	for column := 0; len(line) > 1; column++ {
		var c []byte
		c, line, _ = bytes.Cut(line, []byte{'\t'})
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

// arena keeps bytes in large pieces, so that they need not be copied when there are more. They are not on the heap: what
// is left there is little, so that collecting garbage stays cheap and keeps no memory beside it.
type arena struct {
	pieces [][]byte
}

// arenaPosition is where in an arena some bytes begin, before which is how many they are.
type arenaPosition struct{ piece, offset uint32 }

const pieceSize = 1 << 20

func (a *arena) add(b []byte) (arenaPosition, error) {
	const head = 4
	last := len(a.pieces) - 1
	if last < 0 || cap(a.pieces[last])-len(a.pieces[last]) < head+len(b) {
		piece, err := unix.Mmap(-1, 0, max(pieceSize, head+len(b)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return arenaPosition{}, fmt.Errorf("getting memory: %w", err)
		}
		a.pieces = append(a.pieces, piece[:0])
		last++
	}
	p := a.pieces[last]
	at := arenaPosition{uint32(last), uint32(len(p))}
	a.pieces[last] = append(binary.NativeEndian.AppendUint32(p, uint32(len(b))), b...)
	return at, nil
}

// free gives the memory back.
func (a *arena) free() {
	for _, p := range a.pieces {
		_ = unix.Munmap(p[:cap(p)])
	}
	a.pieces = nil
}

func (a *arena) get(at arenaPosition) []byte {
	b := a.pieces[at.piece][at.offset:]
	return b[4:][:binary.NativeEndian.Uint32(b)]
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

// cell is printable text that does not look like several cells of a table, or several processes.
func cell(s string) string { return cellReplacer.Replace(printable(s)) }

var cellReplacer = strings.NewReplacer(" ", "?", ",", "?")

// printable is for text that a process chose for itself.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
