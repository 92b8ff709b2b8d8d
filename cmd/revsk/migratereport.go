// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// reportDocument is what migrate prints.
type reportDocument struct{ api.MigrateReport }

func newReportDocument(r *migrate.Report, complete bool) reportDocument {
	doc := reportDocument{api.MigrateReport{
		Header:     newHeader(api.MigrateReportSchema),
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
	}}
	doc.Steps, doc.Seconds = newStepDocuments(r.Steps)
	return doc
}

func newUnresolvedDocuments(list []migrate.Unresolved) []api.Unresolved {
	docs := []api.Unresolved{}
	for _, u := range list {
		docs = append(docs, api.Unresolved{
			Cookie: u.Key.Cookie, Backend: u.Key.Backend.String(), Service: u.Value.Service.String(), RevNat: u.Value.RevNat, Reason: u.Why,
		})
	}
	return docs
}

func newStepDocuments(steps []migrate.Step) (docs []api.Step, seconds float64) {
	docs = []api.Step{}
	for _, s := range steps {
		docs = append(docs, api.Step{Name: s.Name, Seconds: s.Duration.Seconds()})
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
		{"no room", "the socket has no memory for more: net.core.optmem_max", c.NoRoom},
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

// verdict says what the result means, and names the next command.
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
	case d.Mode == loader.ModeDual && d.Counts.NoRoom > 0:
		return fmt.Sprintf("Sockets have no room for %s. Mode dual still reads them, so no socket has lost its service. "+
			"Next: sysctl net.core.optmem_max=131072 or more, revsk load, revsk migrate.", count(d.Counts.NoRoom, "entry", "entries"))
	case d.Mode == loader.ModeDual && d.Counts.Unknown > 0:
		return fmt.Sprintf("%s could not be moved. Mode dual still reads them, so no socket has lost its service. "+
			"Next: revsk migrate, once their sockets are closed or the reason is gone.", count(d.Counts.Unknown, "entry", "entries"))
	}
	return fmt.Sprintf("Not finished, in mode %v: no socket has lost its service. Next: revsk migrate, again.", d.Mode)
}

func stepTable(steps []api.Step, seconds float64) table {
	var t table
	t.row("STEP", "SECONDS")
	for _, s := range steps {
		t.row(s.Name, fmt.Sprintf("%.3f", s.Seconds))
	}
	t.row("all", fmt.Sprintf("%.3f", seconds))
	return t
}

func unresolvedTable(list []api.Unresolved) table {
	var t table
	t.row("UNRESOLVED: COOKIE", "BACKEND", "SERVICE", "REV-NAT", "REASON")
	addTop(&t, list, func(u api.Unresolved) { t.row(u.Cookie, u.Backend, u.Service, u.RevNat, u.Reason) })
	return t
}
