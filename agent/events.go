// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// Event is something that the agent has done or seen: one of the types below.
type Event interface {
	// Line is what the log says of it.
	Line() (level slog.Level, message string, attrs []slog.Attr)
}

// Waiting is the event that another agent runs on the same datapath.
type Waiting struct{ Lock string }

// Started is the event that the agent begins its work.
type Started struct{ Options Options }

// Loaded is the event that the datapath was loaded, or a running version replaced.
type Loaded struct {
	Changes  []loader.Change
	Duration time.Duration
}

// OwnerReturned is the event that another agent's programs are on hooks that had been taken over: it was restarted.
type OwnerReturned struct{ Problem loader.Problem }

// TookOver is the event that hooks were taken over.
type TookOver struct {
	// Hooks is how many were taken over this time.
	Hooks int
	// OwnerRan is for how long the owner's programs had run since it was noticed that they are back; 0: the first time.
	OwnerRan time.Duration
	Duration time.Duration
}

// OwnerLeft is the event that the links of the other agent are gone.
type OwnerLeft struct{ Policy OwnerPolicy }

// GaveBack is the event that hooks were handed back, or detached.
type GaveBack struct {
	HandedBack bool
	Changes    []loader.Change
}

// Migrated is the event that entries of the hash were moved, or put back. Err is why not all of them.
type Migrated struct {
	Report *migrate.Report
	Err    error
}

// ProblemFound is the event that something is not as it has to be.
type ProblemFound struct{ loader.Problem }

// ProblemMended is the event that it is again.
type ProblemMended struct{ loader.Problem }

// Failed is the event that something could not be done. It is tried again.
type Failed struct {
	Step string
	Err  error
}

// TerminationHeld is the event that sockets whose backends seem to be gone are not ended for now.
type TerminationHeld struct {
	// Gone of so many backends are gone.
	Gone, Of int
	Why      string
}

// SocketTerminated is the event that a socket was ended, or could not be.
type SocketTerminated struct {
	inspect.Termination
	// After is how long after its backend was seen to be gone.
	After time.Duration
}

// Audited is the event that the hash was judged, in an agent that does nothing but audits.
type Audited struct{ Plan *migrate.Plan }

func (e Waiting) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelInfo, "another agent runs here: waiting for its end", []slog.Attr{slog.String("lock", e.Lock)}
}

func (e Started) Line() (slog.Level, string, []slog.Attr) {
	o := e.Options
	return slog.LevelInfo, "started", []slog.Attr{
		slog.String("cgroup", o.Loader.Cgroup), slog.Bool("audit_only", o.AuditOnly), slog.Bool("takeover", o.Loader.Takeover),
		slog.String("terminate", string(o.Termination.Protocols)),
	}
}

func (e Loaded) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelInfo, "loaded", []slog.Attr{changesAttr(e.Changes), slog.Duration("duration", e.Duration)}
}

// changesAttr says how many changes of each kind there were.
func changesAttr(all []loader.Change) slog.Attr {
	count := make(map[string]int)
	var order []string
	for _, c := range all {
		if count[c.Action]++; count[c.Action] == 1 {
			order = append(order, c.Action)
		}
	}
	for i, action := range order {
		order[i] = fmt.Sprintf("%s %d", action, count[action])
	}
	return slog.String("changes", strings.Join(order, ", "))
}

func (e OwnerReturned) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelInfo, "the other agent has put its programs back", []slog.Attr{slog.String("seen", e.Problem.Text)}
}

func (e TookOver) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelInfo, "took over", []slog.Attr{
		slog.Int("hooks", e.Hooks), slog.Duration("owner_ran", e.OwnerRan), slog.Duration("duration", e.Duration),
	}
}

func (e OwnerLeft) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelWarn, "the other agent is gone", []slog.Attr{slog.String("policy", string(e.Policy))}
}

func (e GaveBack) Line() (slog.Level, string, []slog.Attr) {
	what := "detached the hooks"
	if e.HandedBack {
		what = "handed the hooks back"
	}
	return slog.LevelInfo, what, []slog.Attr{changesAttr(e.Changes)}
}

func (e Migrated) Line() (slog.Level, string, []slog.Attr) {
	r := e.Report
	attrs := []slog.Attr{
		slog.String("mode", r.Mode.String()), slog.Int("entries", r.Entries), slog.Int("moved", r.MovedConn+r.MovedPeers),
		slog.Int("leaked", r.Leaked), slog.Int("written", r.Written), slog.Duration("duration", reportDuration(r)),
	}
	if e.Err != nil {
		return slog.LevelWarn, "migrated, but not everything", append(attrs, slog.Any("error", e.Err))
	}
	return slog.LevelInfo, "migrated", attrs
}

func reportDuration(r *migrate.Report) (d time.Duration) {
	for _, s := range r.Steps {
		d += s.Duration
	}
	return d
}

func (e ProblemFound) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelWarn, "problem", problemAttrs(e.Problem)
}

func (e ProblemMended) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelInfo, "problem is gone", problemAttrs(e.Problem)
}

func problemAttrs(p loader.Problem) []slog.Attr {
	return []slog.Attr{slog.String("code", p.Code), slog.String("text", p.Text)}
}

func (e Failed) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelError, "failed, and will be tried again", []slog.Attr{slog.String("step", e.Step), slog.Any("error", e.Err)}
}

func (e TerminationHeld) Line() (slog.Level, string, []slog.Attr) {
	return slog.LevelWarn, "sockets of backends that seem to be gone are not ended for now", []slog.Attr{
		slog.Int("gone", e.Gone), slog.Int("of", e.Of), slog.String("why", e.Why),
	}
}

func (e SocketTerminated) Line() (slog.Level, string, []slog.Attr) {
	s := e.Socket
	level, attrs := slog.LevelInfo, []slog.Attr{
		slog.String("outcome", string(e.Outcome)), slog.String("protocol", s.Protocol.String()),
		slog.String("service", e.Connection.Service.String()), slog.String("backend", e.Connection.Peer.String()),
		slog.String("local", s.Local.String()), slog.String("process", owners(s.Owners)), slog.String("netns", netnsName(s.NetNS)),
		slog.Duration("after", e.After),
	}
	if e.Err != nil {
		level, attrs = slog.LevelWarn, append(attrs, slog.Any("error", e.Err))
	}
	return level, "socket of a backend that is gone", attrs
}

// mostNamed is how many processes that have a socket open are named. A process can share its sockets with as many as it likes.
const mostNamed = 8

func owners(all []inspect.Process) string {
	var names []string
	for _, p := range all[:min(len(all), mostNamed)] {
		names = append(names, fmt.Sprintf("%s(%d)", plain(p.Command), p.ID))
	}
	if len(all) > mostNamed {
		names = append(names, "...")
	}
	return strings.Join(names, " ")
}

// plain replaces what could control a terminal in a name that a process has chosen for itself, which a handler of JSON leaves as
// it is, and what could make it look like that of another process.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) || strings.ContainsRune(" ()\ufffd", r) {
			return '?'
		}
		return r
	}, name)
}

func netnsName(n inspect.NetNS) string {
	if n.Name != "" {
		return n.Name
	}
	return fmt.Sprint(n.Inode)
}

func (e Audited) Line() (slog.Level, string, []slog.Attr) {
	p := e.Plan
	return slog.LevelInfo, "audited", []slog.Attr{
		slog.Int("entries", p.Entries), slog.Int("leaked", p.Leaked), slog.Int("stale", p.Stale),
		slog.Int("sockets_without_entry", p.WithoutEntrySum()),
	}
}

// happen tells everybody of an event.
func (a *Agent) happen(e Event) {
	a.eventLock.Lock()
	defer a.eventLock.Unlock()
	opts := a.options()
	level, message, attrs := e.Line()
	opts.Logger.LogAttrs(a.ctx, level, message, attrs...)
	if opts.OnEvent != nil {
		opts.OnEvent(e)
	}
}
