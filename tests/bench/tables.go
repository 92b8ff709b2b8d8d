// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

func (r *report) printMemory(w io.Writer) {
	if len(r.Memory) == 0 {
		return
	}
	t := newTable(w)
	fmt.Fprintf(t, "\nmemory: %d sockets\tvariant\tslab bytes per socket\tmaps, KiB\tclosing, CPU ns per socket\tclosed after\tfreed after\tslab objects per socket\n", memorySockets)
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
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%d\t%.0f\t%.2f s\t%s\t%s\n", kind, m.Variant, m.PerSocket, maps/1024,
			m.CloseCPU, m.Close, freed, strings.Join(caches, ", "))
	}
	t.Flush()
}

func (r *report) printLoss(w io.Writer) {
	if len(r.Loss) == 0 {
		return
	}
	t := newTable(w)
	fmt.Fprintln(t, "\nloss: mode\thash has room for\tlive sockets\tload\tknow their service")
	for _, l := range r.Loss {
		fmt.Fprintf(t, "%s\t%d\t%d\t%gx\t%d (%.0f %%)\n", l.Variant, l.Room, l.Sockets, l.Load, l.Know, 100*float64(l.Know)/float64(l.Sockets))
	}
	t.Flush()
}

func (r *report) printPasses(w io.Writer) {
	if len(r.Passes) == 0 {
		return
	}
	t := newTable(w)
	fmt.Fprintln(t, "\npasses\tsockets\tseconds\tsockets per second")
	for _, p := range r.Passes {
		fmt.Fprintf(t, "%s\t%d\t%.3f\t%.2f million\n", p.Name, p.Sockets, p.Seconds, p.PerSecond/1e6)
	}
	t.Flush()
}
