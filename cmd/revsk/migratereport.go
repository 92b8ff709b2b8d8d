// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// reportDocument is the JSON output of migrate.
type reportDocument struct {
	Schema string `json:"schema"` // revsk/migrate-report/v1
	// Complete: it came to its end, and every entry is accounted for.
	Complete bool           `json:"complete"`
	To       loader.Mode    `json:"to"`   // the mode in which it was to end
	Mode     loader.Mode    `json:"mode"` // afterwards
	Engine   migrate.Engine `json:"engine"`
	Counts   migrate.Counts `json:"counts"`
	Deleted  int            `json:"deleted"` // from the hash
	Written  int            `json:"written"` // to the hash, of what sockets hold, for mode mirror
	Missing  int            `json:"missing"` // from the hash, for want of room
	Rounds   int            `json:"rounds"`  // how often the hash was read
	Passes   int            `json:"passes"`  // how often sockets were visited
	// Unresolved are the first 100 of the entries that count as unknown.
	Unresolved []unresolvedDocument `json:"unresolved"`
	Seconds    float64              `json:"seconds"`
	Steps      []stepDocument       `json:"steps"`
}

// unresolvedDocument is an entry, or what should be one, that could not be moved.
type unresolvedDocument struct {
	Cookie  uint64 `json:"cookie,string"` // a number too large for many readers of JSON
	Backend string `json:"backend"`       // ADDR:PORT
	Service string `json:"service"`       // ADDR:PORT
	RevNat  uint16 `json:"rev_nat"`
	Reason  string `json:"reason"`
}

// stepDocument is a part of the work.
type stepDocument struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

func newReportDocument(r *migrate.Report, complete bool) reportDocument {
	doc := reportDocument{
		Schema:     "revsk/migrate-report/v1",
		Complete:   complete,
		To:         r.To,
		Mode:       r.Mode,
		Engine:     r.Engine,
		Counts:     r.Counts,
		Deleted:    r.Deleted,
		Written:    r.Written,
		Missing:    r.Missing,
		Rounds:     r.Rounds,
		Passes:     r.Passes,
		Unresolved: newUnresolvedDocuments(r.Unresolved),
	}
	doc.Steps, doc.Seconds = newStepDocuments(r.Steps)
	return doc
}

func newUnresolvedDocuments(list []migrate.Unresolved) []unresolvedDocument {
	docs := []unresolvedDocument{}
	for _, u := range list {
		docs = append(docs, unresolvedDocument{u.Key.Cookie, u.Key.Backend.String(), u.Value.Service.String(), u.Value.RevNat, u.Why})
	}
	return docs
}

func newStepDocuments(steps []migrate.Step) (docs []stepDocument, seconds float64) {
	docs = []stepDocument{}
	for _, s := range steps {
		docs = append(docs, stepDocument{s.Name, s.Duration.Seconds()})
		seconds += s.Duration.Seconds()
	}
	return docs, seconds
}

func (d reportDocument) print(env *env) error {
	var head, entries table
	head.row("mode", d.Mode)
	head.row("engine", d.Engine)
	head.row("hash read", count(d.Rounds, "time", "times"))
	head.row("sockets visited", count(d.Passes, "time", "times"))

	c := d.Counts
	entries.counts("ENTRIES", []counted{
		{"moved, connected", "their sockets are connected to the backend, and hold them now", c.MovedConn},
		{"moved, sent to", "their sockets have sent to the backend, and hold them now", c.MovedPeers},
		{"present", "their sockets had them already", c.Present},
		{"stale", "the socket is open, the service is gone", c.Stale},
		{"leaked", "no such socket, or it is connected elsewhere", c.Leaked},
		{"ended", "the socket was closed, or now uses the backend directly", c.Ended},
		{"unknown", "could not be moved, and are kept", c.Unknown},
	}...)
	entries.row("all", c.Entries)
	entries.row("deleted", d.Deleted, "from the hash")
	if d.To == loader.ModeMirror {
		entries.row("written", d.Written, "to the hash: sockets hold them")
		entries.row("missing", d.Missing, "the hash has no room for them")
	}

	if err := printSections(env.Stdout, head, entries, stepTable(d.Steps, d.Seconds), unresolvedTable(d.Unresolved)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(env.Stdout, "\n%s\n", d.verdict())
	return err
}

// verdict says what it means, and what to do next.
func (d reportDocument) verdict() string {
	switch {
	case d.Complete && d.Mode == loader.ModeMirror:
		return "Done: the services are on the sockets, and also in the hash, for the programs of the other agent. Next: revsk status."
	case d.Complete && d.Deleted < d.Counts.Entries:
		return fmt.Sprintf("Done: the services are on the sockets; %s left in the hash (--keep-stale). Next: revsk status.",
			count(d.Counts.Entries-d.Deleted, "stale entry is", "stale entries are"))
	case d.Complete:
		return "Done: the services are on the sockets, and every entry of the hash is accounted for. Next: revsk status."
	case d.Missing > 0:
		return fmt.Sprintf("The hash has no room for %s of live sockets. In mode %v no socket has lost its service. "+
			"Next: revsk migrate, once there are fewer sockets, or revsk migrate --to storage.", count(d.Missing, "entry", "entries"), d.Mode)
	case d.Mode == loader.ModeDual && d.Counts.Unknown > 0:
		return fmt.Sprintf("%s could not be moved. Mode dual still reads them, so no socket has lost its service. "+
			"Next: revsk migrate, once their sockets are closed or the reason is gone.", count(d.Counts.Unknown, "entry", "entries"))
	}
	return fmt.Sprintf("Not finished, in mode %v: no socket has lost its service. Next: revsk migrate, again.", d.Mode)
}

func stepTable(steps []stepDocument, seconds float64) table {
	var t table
	t.row("STEP", "SECONDS")
	for _, s := range steps {
		t.row(s.Name, fmt.Sprintf("%.3f", s.Seconds))
	}
	t.row("all", fmt.Sprintf("%.3f", seconds))
	return t
}

func unresolvedTable(list []unresolvedDocument) table {
	var t table
	t.row("UNRESOLVED: COOKIE", "BACKEND", "SERVICE", "REV-NAT", "REASON")
	addTop(&t, list, func(u unresolvedDocument) { t.row(u.Cookie, u.Backend, u.Service, u.RevNat, u.Reason) })
	return t
}
