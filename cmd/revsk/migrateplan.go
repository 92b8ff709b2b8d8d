// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// topRows is how many rows of a long list a table has. JSON has all.
const topRows = 10

// fullPercent is the percentage from which on a map is called full: the LRU evicts before every place is taken.
const fullPercent = 90

// situation is what is loaded on this node.
type situation struct {
	mode     *loader.Mode // nil: not loaded
	complete bool         // every hook is attached
	agent    bool         // another agent's programs are on our hooks
}

// findSituation looks at what is loaded.
func findSituation(opts loader.Options) (situation, error) {
	agent, err := loader.AgentRuns(opts)
	if err != nil && !errors.Is(err, loader.ErrPermission) {
		return situation{}, err
	}
	dp, err := loader.Open(opts)
	if errors.Is(err, loader.ErrNotLoaded) {
		return situation{agent: agent}, nil
	}
	if err != nil {
		return situation{}, err
	}
	defer dp.Close()
	mode, err := dp.Mode()
	if err != nil {
		return situation{}, err
	}
	hooks, err := dp.Hooks()
	return situation{&mode, loader.Status{Hooks: hooks}.Complete(), agent}, err
}

func (s situation) is(mode loader.Mode) bool { return s.mode != nil && *s.mode == mode }

// planDocument is an [api.MigratePlan] with what is needed to print it.
type planDocument struct {
	api.MigratePlan
	at situation
}

func newPlanDocument(plan *migrate.Plan, at situation) planDocument {
	doc := planDocument{MigratePlan: api.MigratePlan{
		Header:              newHeader(api.MigratePlanSchema),
		Mode:                at.mode,
		Engine:              plan.Engine,
		To:                  plan.To,
		Counts:              plan.Counts,
		LeakedPercent:       percent(plan.Leaked, plan.Entries),
		Live:                []api.LiveCount{},
		Maps:                newFillDocuments(plan.Maps),
		WithoutEntry:        []api.BackendCount{},
		WithoutEntrySockets: plan.WithoutEntrySum(),
		Leaks:               []api.ServiceCount{},
	}, at: at}
	doc.Steps, doc.Seconds = newStepDocuments(plan.Steps)
	for _, l := range plan.Live {
		doc.Live = append(doc.Live, api.LiveCount{
			Protocol: l.Protocol, Family: fmt.Sprintf("ipv%d", l.Family), Connected: l.Connected, Entries: l.Entries,
		})
	}
	for _, b := range plan.WithoutEntry {
		doc.WithoutEntry = append(doc.WithoutEntry, api.BackendCount{
			Backend: b.Backend.String(), Protocol: b.Protocol, Sockets: b.Sockets,
		})
	}
	for _, s := range plan.Leaks {
		doc.Leaks = append(doc.Leaks, api.ServiceCount{
			Service: s.Service.String(), RevNat: s.RevNat, Entries: s.Entries,
		})
	}
	return doc
}

func newFillDocuments(maps []migrate.MapFill) []api.MapFill {
	docs := []api.MapFill{}
	for _, m := range maps {
		docs = append(docs, api.MapFill{
			Name: m.Name, Entries: m.Entries, MaxEntries: m.MaxEntries, Percent: percent(m.Entries, m.MaxEntries),
		})
	}
	return docs
}

func (d planDocument) print(w io.Writer) error {
	var head, entries, live, fill, without, leaks table
	mode := "not loaded"
	if d.Mode != nil {
		mode = "mode " + d.Mode.String()
	}
	head.row("revsk", mode)
	head.row("engine", d.Engine)
	if d.To != loader.ModeStorage {
		head.row("ends in", "mode "+d.To.String())
	}

	present := "deletes them: the sockets have them"
	if d.To == loader.ModeMirror {
		present = "keeps them: the sockets have them, too"
	}
	c := d.Counts
	entries.row("ENTRIES", "COUNT", "SHARE", "A MIGRATION")
	for _, row := range []struct {
		name, does string
		count      int
	}{
		{"live, connected", "moves them onto their sockets", c.MovedConn},
		{"live, sent to", "moves them onto their sockets", c.MovedPeers},
		{"live, moved already", present, c.Present},
		{"stale", "deletes them: the service is gone (not with --keep-stale)", c.Stale},
		{"leaked", "deletes them: no such socket, or it is connected elsewhere", c.Leaked},
		{"ended", "deletes them: the application now uses the backend directly", c.Ended},
		{"unknown", "keeps them, and stays in mode dual", c.Unknown},
	} {
		entries.row(row.name, row.count, share(percent(row.count, c.Entries)), row.does)
	}
	entries.row("all", c.Entries)

	live.row("LIVE", "FAMILY", "CONNECTED", "ENTRIES")
	for _, l := range d.Live {
		connected := "no"
		if l.Connected {
			connected = "yes"
		}
		live.row(l.Protocol, l.Family, connected, l.Entries)
	}
	addFill(&fill, d.Maps, "ENTRIES")

	without.row("CONNECTED WITHOUT AN ENTRY", "PROTOCOL", "SOCKETS")
	addTop(&without, d.WithoutEntry, func(b api.BackendCount) { without.row(b.Backend, b.Protocol, b.Sockets) })
	leaks.row("LEAKS OF SERVICE", "REV-NAT", "ENTRIES")
	addTop(&leaks, d.Leaks, func(s api.ServiceCount) { leaks.row(s.Service, s.RevNat, s.Entries) })

	if d.at.is(loader.ModeStorage) {
		without.rows = nil // the sockets themselves hold their services
	}
	if err := printSections(w, head, entries, live, fill, without, leaks); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s %s\n", d.health(), d.next())
	return err
}

// health says what the numbers mean, in a sentence.
func (d planDocument) health() string {
	c := d.Counts
	if d.at.is(loader.ModeStorage) {
		if c.Entries == 0 {
			return "The hash is empty, and the services are on the sockets."
		}
		return "In mode storage the hooks neither read nor write the hash: its entries are outdated."
	}
	var parts []string
	switch {
	case c.Entries == 0:
		parts = append(parts, "the hash is empty")
	case c.Leaked == 0:
		parts = append(parts, "no entry is leaked")
	default:
		parts = append(parts, fmt.Sprintf("%d of %s leaked (%s)", c.Leaked, count(c.Entries, "entry is", "entries are"), share(d.LeakedPercent)))
	}
	for _, m := range d.Maps {
		if m.Percent >= fullPercent {
			parts = append(parts, fmt.Sprintf("%s is full (%s) and evicts entries of live sockets", m.Name, share(m.Percent)))
		}
	}
	if n := d.WithoutEntrySockets; n > 0 {
		parts = append(parts, count(n, "socket has", "sockets have")+" no entry: connected to the backend directly, or the entry was evicted and the service is lost")
	}
	if c.Unknown > 0 {
		parts = append(parts, count(c.Unknown, "entry", "entries")+" cannot be judged")
	}
	text := strings.Join(parts, "; ")
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// next names the next command.
func (d planDocument) next() string {
	c := d.Counts
	if d.at.is(loader.ModeStorage) && d.at.complete && d.To == loader.ModeStorage {
		if c.Entries == 0 {
			return "Nothing to do."
		}
		return "Next: revsk migrate, which deletes them."
	}
	if d.at.agent {
		return "Next: revsk load --takeover, which takes over from the agent that runs here, and migrates."
	}
	if d.at.mode == nil && c.Entries == 0 {
		return "Next: revsk load."
	}
	does := fmt.Sprintf("moves %d and deletes %d", c.MovedConn+c.MovedPeers, c.Present+c.Stale+c.Leaked+c.Ended)
	if d.To == loader.ModeMirror {
		does = fmt.Sprintf("moves %d and deletes %d", c.MovedConn+c.MovedPeers, c.Stale+c.Leaked+c.Ended)
	}
	if c.Entries == 0 || d.at.is(loader.ModeStorage) {
		does = "ends in mode " + d.To.String()
	}
	switch {
	case d.at.mode == nil:
		return "Next: revsk load --mode dual, then revsk migrate, which " + does + "."
	case !d.at.complete:
		return "Next: revsk load, which attaches the hooks that are missing, then revsk migrate, which " + does + "."
	}
	return "Next: revsk migrate, which " + does + "."
}

func addFill(t *table, maps []api.MapFill, heading string) {
	t.row("MAP", heading, "SIZE", "FULL")
	for _, m := range maps {
		t.row(m.Name, m.Entries, m.MaxEntries, share(m.Percent))
	}
}

// addTop adds the first rows of a list, and says how many are left out.
func addTop[T any](t *table, list []T, add func(T)) {
	for _, item := range list[:min(len(list), topRows)] {
		add(item)
	}
	if more := len(list) - topRows; more > 0 {
		t.row(fmt.Sprintf("and %d more: -o json has all", more))
	}
}

// percent is rounded to two digits, but is 0 and 100 only if that is exact. If there is nothing at all it is 0.
func percent(part, of int) float64 {
	p := math.Round(10000*float64(part)/float64(max(1, of))) / 100
	if part > 0 && part < of {
		p = min(max(p, 0.01), 99.99)
	}
	return p
}

// share is rounded to one digit, but is 0 and 100 only if that is exact.
func share(percent float64) string {
	if percent > 0 && percent < 100 {
		percent = min(max(percent, 0.1), 99.9)
	}
	return fmt.Sprintf("%.1f%%", percent)
}
