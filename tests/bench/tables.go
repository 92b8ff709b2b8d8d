// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// table is printed for people, or written as Markdown.
type table struct {
	title, note string
	head        []string
	rows        [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", t.title)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range slices.Concat([][]string{t.head}, t.rows) {
		fmt.Fprintf(out, "  %s\n", strings.Join(row, "\t"))
	}
	out.Flush()
}

func (t *table) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n## %s\n\n", t.title)
	if t.note != "" {
		fmt.Fprintf(w, "%s\n\n", t.note)
	}
	rule := slices.Repeat([]string{"---"}, len(t.head))
	for _, row := range slices.Concat([][]string{t.head, rule}, t.rows) {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}

// tables are all results.
func (r *report) tables() []*table {
	all := []*table{r.goalTable()}
	all = append(all, r.hookTables()...)
	all = append(all, r.scaleTable(), r.memoryTable(), r.optmemTable(), r.lossTable(), r.passTable(), r.commandTable(), r.programTable())
	return slices.DeleteFunc(all, func(t *table) bool { return len(t.rows) == 0 })
}

// show prints the tables, and writes them to the file that the flags name.
func (r *report) show() error {
	fmt.Println(r.heading())
	for _, t := range r.tables() {
		t.print(os.Stdout)
	}
	if *tablesPath == "" {
		return nil
	}
	return r.writeMarkdown(*tablesPath)
}

// heading says what was measured where.
func (r *report) heading() string {
	if r.Reference == "" {
		return r.Machine.String()
	}
	return fmt.Sprintf("%v. The reference: %s", r.Machine, r.Reference)
}

// writeMarkdown writes the tables to a file.
func (r *report) writeMarkdown(path string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results of the benchmarks\n\n*For operators, and for maintainers of Cilium.*\n\nWritten by `make bench`; [benchmarks.md](benchmarks.md) says what they mean.\n\n%s.\n", r.heading())
	for _, t := range r.tables() {
		t.markdown(&b)
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// hookTitles are the sections whose works are compared in all variants.
var hookTitles = []struct{ section, title, note string }{
	{"hooks", "Hooks", "Nanoseconds of program time per call, less those of an empty program; the ratios are of storage to legacy, " +
		"with the interval that has the true median with a probability of 99 %, and to the reference's own programs. A \"?\" is at what varies much. " +
		"The last column is that of whole system calls."},
	{"peers", "Many peers", ""},
	{"contention", "One CPU, and both at once", ""},
}

func (r *report) hookTables() []*table {
	var all []*table
	for _, h := range hookTitles {
		t := &table{title: h.title, note: h.note}
		names := r.variants(h.section)
		t.head = slices.Concat([]string{"work"}, names, []string{"to full", "to empty", "to reference", "calls, to full"})
		for _, f := range r.Figures {
			if f.Section != h.section {
				continue
			}
			row := []string{f.Work}
			for _, name := range names {
				row = append(row, nanoseconds(f.Hooks, name))
			}
			t.add(append(row, sure(f.against(legacyFull)), short(f.against(legacyEmpty)),
				short(f.against(foreign)), short(f.CallRatios[storage+" / "+legacyFull]))...)
		}
		all = append(all, t)
	}
	return all
}

// variants are those of a section: the usual ones, and then the builds that were to be measured too.
func (r *report) variants(section string) []string {
	names := []string{floor, legacyEmpty, legacyFull, dual, mirror, storage}
	for _, f := range r.Figures {
		if f.Section != section {
			continue
		}
		for _, name := range sortedKeys(f.Hooks) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func (r *report) scaleTable() *table {
	t := &table{title: "Many live sockets", head: []string{"work", legacyFull, storage, foreign, "to full"}}
	for _, f := range r.Figures {
		if f.Section == "scale" {
			t.add(f.Work, nanoseconds(f.Hooks, legacyFull), nanoseconds(f.Hooks, storage), nanoseconds(f.Hooks, foreign), sure(f.against(legacyFull)))
		}
	}
	return t
}

func (r *report) goalTable() *table {
	t := &table{
		title: "What must be reached",
		note: "Ratios of program time, storage to another variant; the worst of all families and protocols. Bold: missed by more than the " +
			"noise. Beside them the worst of storage to the reference's own programs.",
		head: []string{"work", "to", "must", "aim", "measured", "99 % sure", "the worst of them", "to reference"},
	}
	for _, g := range goals {
		f, ok := g.worst(r, g.base)
		if !ok {
			continue
		}
		s := f.ratio(g.variant, g.base)
		toReference := ""
		if g.base != legacyEmpty { // as its hash is not
			w, _ := g.worst(r, foreign)
			toReference = short(w.ratio(g.variant, foreign))
		}
		measured := short(s)
		if s.SureLow > g.must {
			measured = "**" + measured + "**"
		}
		t.add(g.name, g.base, fmt.Sprintf("%.2f", g.must), fmt.Sprintf("%.2f", g.aim), measured,
			fmt.Sprintf("%.2f-%.2f", s.SureLow, s.SureHigh), f.Work, toReference)
	}
	return t
}

func (r *report) memoryTable() *table {
	t := &table{
		title: "Memory, and the time to free it",
		note: fmt.Sprintf("%d UDP sockets. Slab memory is what a socket takes beyond one of the empty program's; maps are before the first "+
			"socket. All are closed at once, by killing their processes.", memorySockets),
		head: []string{"sockets", "variant", "slab bytes per socket", "objects per socket", "maps, KiB", "closing, CPU ns per socket",
			"closed after", "slab free after"},
	}
	for _, m := range r.Memory {
		kind := "connected"
		if m.Sends {
			kind = "have sent"
		}
		var maps uint64
		for _, n := range m.Maps {
			maps += n
		}
		var caches []string
		for _, name := range sortedKeys(m.Caches) {
			caches = append(caches, fmt.Sprintf("%.1f %s", m.Caches[name], name))
		}
		freed := "not seen"
		if m.Freed > 0 {
			freed = fmt.Sprintf("%.2f s", m.Freed)
		}
		t.add(kind, m.Variant, fmt.Sprintf("%.0f", m.PerSocket), strings.Join(caches, ", "), fmt.Sprint(maps/1024),
			fmt.Sprintf("%.0f", m.CloseCPU), fmt.Sprintf("%.2f s", m.Close), freed)
	}
	return t
}

func (r *report) optmemTable() *table {
	t := &table{
		title: "Memory that a socket is charged for, by the number of its peers",
		note: fmt.Sprintf("Bytes of optmem of an unconnected UDP socket, IPv4, that has sent to so many services (mean and most of %d), and "+
			"what as many entries of the hash take.", chargedSockets),
		head: []string{"variant", "peers", "bytes per socket", "at most", "as many entries of the hash"},
	}
	for _, c := range r.Charged {
		t.add(c.Variant, fmt.Sprint(c.Peers), fmt.Sprintf("%.0f", c.Mean), fmt.Sprint(c.Most), fmt.Sprintf("%.0f", float64(c.Peers)*c.Entry))
	}
	return t
}

func (r *report) lossTable() *table {
	t := &table{title: "Sockets that lose their service", head: []string{"mode", "hash has room for", "live sockets", "load", "know their service"}}
	for _, l := range r.Loss {
		t.add(l.Variant, fmt.Sprint(l.Room), fmt.Sprint(l.Sockets), fmt.Sprintf("%gx", l.Load),
			fmt.Sprintf("%d (%.0f %%)", l.Know, 100*float64(l.Know)/float64(l.Sockets)))
	}
	return t
}

func (r *report) passTable() *table {
	t := &table{title: "Passes over all sockets", head: []string{"pass", "sockets", "seconds", "sockets per second"}}
	for _, p := range r.Passes {
		t.add(p.Name, fmt.Sprint(p.Sockets), fmt.Sprintf("%.3f", p.Seconds), fmt.Sprintf("%.0f", p.PerSecond))
	}
	return t
}

func (r *report) commandTable() *table {
	t := &table{
		title: "Commands",
		note:  "Processor time, user and kernel, and the most memory, of the whole process. Nine of ten sockets are connected, the others have sent.",
		head:  []string{"command", "sockets", "seconds", "MiB", "to the iterator"},
	}
	for _, c := range r.Commands {
		t.add(c.Name, fmt.Sprint(c.Sockets), fmt.Sprintf("%.3f", c.CPU), fmt.Sprint(c.Memory>>20), fmt.Sprintf("%.1f", c.Ratio))
	}
	return t
}

func (r *report) programTable() *table {
	t := &table{title: "Size of the programs", head: []string{"program", "translated, bytes", "machine code, bytes"}}
	for _, p := range r.Programs {
		t.add(p.Name, fmt.Sprint(p.Translated), fmt.Sprint(p.Machine))
	}
	return t
}

func nanoseconds(stats map[string]Stat, variant string) string {
	s, ok := stats[variant]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%.0f%s", s.Median, wide(s))
}

// short is a ratio, sure is one with its interval.
func short(s Stat) string {
	if s.Rounds == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f%s", s.Median, wide(s))
}

func sure(s Stat) string {
	if s.Rounds == 0 {
		return ""
	}
	return fmt.Sprintf("%s (%.2f-%.2f)", short(s), s.SureLow, s.SureHigh)
}

func wide(s Stat) string {
	if s.Wide {
		return " ?"
	}
	return ""
}
