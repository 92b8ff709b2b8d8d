// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// terminator ends the sockets that are connected through a service to a backend that is gone.
type terminator struct {
	a    *Agent
	maps backendMaps

	present backendSet
	// gone are the backends that have left the maps and are not done with, since when.
	gone map[inspect.Backend]time.Time
	// recent are those that have left lately, whatever has become of their sockets.
	recent map[inspect.Backend]time.Time

	changed  time.Time // when the maps changed last
	lost     time.Time // when the last backend left
	settling time.Time // since when there must be a time without changes; zero: there was one
	stirred  uint64    // as of the agent, when that began
	many     time.Time // since when more have gone at once than may; zero: they have not
	held     string    // why nothing is ended
	next     time.Time // not before

	failed map[inspect.SocketID]bool      // could not be ended, which was counted
	told   map[inspect.SocketID]time.Time // the same, of earlier attempts, which a survey makes again: when the last one was

	sockets   *inspect.Terminator // nil: not opened
	datapath  *loader.Datapath    // whose maps it uses
	socketsOf [4]ebpf.MapID       // of which maps these are
}

func newTerminator(a *Agent) *terminator {
	return &terminator{
		a: a, gone: make(map[inspect.Backend]time.Time), recent: make(map[inspect.Backend]time.Time), failed: make(map[inspect.SocketID]bool),
		told: make(map[inspect.SocketID]time.Time),
		maps: backendMaps{dir: a.options().Loader.MapsDir}, settling: time.Now(),
	}
}

const (
	// atOnce is how long ago a backend may have left to count as having left at once with another.
	atOnce = 10 * time.Second
	// patiently is how much longer than it has to be is waited for maps to come to rest.
	patiently = 10
	// unmigratedRest is the time between two looks for sockets that a migration has to move first.
	unmigratedRest = 5 * time.Second
	// leftToSurveys is after how long a backend whose sockets cannot be ended is forgotten. Where nothing is loaded all that ever
	// leave would else be remembered, and held against those that leave later.
	leftToSurveys = time.Minute
)

func (t *terminator) run(ctx context.Context) {
	defer t.maps.close()
	defer t.closeSockets()
	for {
		t.a.beat(loopBackends)
		opts := t.a.options()
		if opts.Termination.Protocols == TerminateOff {
			// What changes meanwhile is not judged when it is turned on again.
			t.present, t.settling = nil, time.Now()
			clear(t.gone)
			clear(t.recent)
			t.maps.close()
			t.hold("")
			t.show()
		} else {
			t.turn(ctx, opts.Termination)
		}
		pause := t.a.untilTick(opts.Poll)
		if left := time.Until(t.lost.Add(opts.Termination.Grace)); len(t.gone) > 0 && left > 0 {
			pause = min(pause, left)
		}
		if sleep(ctx, pause) != nil {
			return
		}
	}
}

func (t *terminator) turn(ctx context.Context, opts Termination) {
	set, anew, err := t.maps.read(ctx, opts.States, len(t.gone) > 0 || !t.settling.IsZero())
	if isMissing(err) {
		return // there are no services yet
	}
	if !t.a.outcome(stepBackends, err) {
		return
	}
	now := time.Now()
	// A restart of the owner begins with its programs, or at the same time.
	if n := t.a.stirred.Load(); anew || n != t.stirred {
		t.settling, t.stirred = now, n
	} else if !t.settling.IsZero() && t.rest(now) >= opts.Settle {
		t.settling = time.Time{} // before what has changed just now
	}
	if set != nil {
		t.compare(set, now)
	}
	t.adopt(t.a.takeMissing(), opts.Protocols, now)
	maps.DeleteFunc(t.recent, func(b inspect.Backend, left time.Time) bool { return now.Sub(left) > atOnce && t.gone[b].IsZero() })
	t.show()
	if len(t.gone) == 0 {
		t.many = time.Time{}
		clear(t.failed)
		t.hold("")
		return
	}
	why := t.mayNot(opts, now)
	t.hold(why)
	if why != "" {
		return
	}
	due := t.due(opts, now)
	switch {
	case len(due) == 0 && t.sockets == nil && t.mayEnd(opts):
		_ = t.openSockets() // while time passes anyway; an error is told when it counts
	case len(due) > 0 && !now.Before(t.next):
		t.terminate(ctx, opts, due)
	}
}

// mayEnd tells whether there can be sockets to be ended of what is gone.
func (t *terminator) mayEnd(opts Termination) bool {
	for b := range t.gone {
		if len(endable(b.Protocol, opts.Protocols)) > 0 {
			return true
		}
	}
	return false
}

// rest is for how long the maps have been at rest, of the time that counts after a start.
func (t *terminator) rest(now time.Time) time.Duration {
	return min(now.Sub(t.changed), now.Sub(t.settling))
}

// compare notes which backends have left, and which are back.
func (t *terminator) compare(set backendSet, now time.Time) {
	there := func(b inspect.Backend, _ time.Time) bool { return set.has(b) || t.maps.lacks(b) }
	for b := range t.present {
		if !there(b, now) {
			t.gone[b], t.recent[b], t.lost = now, now, now
		}
	}
	maps.DeleteFunc(t.gone, there)
	maps.DeleteFunc(t.recent, there)
	t.present, t.changed = set, now
}

// adopt notes backends of sockets that are not in the maps: they have left before this agent was started, or a socket was
// connected just when they left.
func (t *terminator) adopt(missing []inspect.Backend, which Protocols, now time.Time) {
	for _, b := range missing {
		if t.present != nil && !t.present.has(b) && !t.maps.lacks(b) && t.gone[b].IsZero() && len(endable(b.Protocol, which)) > 0 {
			t.gone[b], t.recent[b] = now, now
		}
	}
}

// Why sockets are not ended.
const (
	heldEmpty    = "there are no backends at all"
	heldSettling = "the maps have not been at rest since a start"
	heldMany     = "more have gone at once than may"
)

// holdReasons have a label each, for metrics.
var holdReasons = []struct{ label, text string }{{"empty", heldEmpty}, {"settling", heldSettling}, {"share", heldMany}}

// mayNot is why nothing may be ended, whatever is gone; empty: it may.
func (t *terminator) mayNot(opts Termination, now time.Time) string {
	many := t.many
	t.many = time.Time{}
	switch {
	case len(t.present) == 0:
		return heldEmpty
	case !t.settling.IsZero() && t.rest(now) < opts.Settle && now.Sub(t.settling) < patiently*opts.Settle:
		return heldSettling
	}
	t.settling = time.Time{}
	n, of := len(t.recent), len(t.present)+len(t.recent)
	if float64(n) <= opts.MaxShare*float64(of) || losses(t.recent, t.present) <= 1 {
		return ""
	}
	if many.IsZero() {
		many = now
	}
	if now.Sub(t.changed) < opts.Hold && now.Sub(many) >= patiently*opts.Hold {
		clear(t.recent) // believed, though the maps never rest; what goes next is judged by itself
		return ""
	}
	t.many = many
	if now.Sub(t.changed) < opts.Hold {
		return heldMany
	}
	return ""
}

// hold tells why nothing is ended, once.
func (t *terminator) hold(why string) {
	if why == t.held {
		return
	}
	t.held = why
	t.a.update(func(v *view) { v.backends.held = why })
	if why != "" {
		t.a.happen(TerminationHeld{Gone: len(t.gone), Of: len(t.present) + len(t.recent), Why: why})
	}
}

// due are the backends that have been gone for long enough, those first that have been for longest.
func (t *terminator) due(opts Termination, now time.Time) []inspect.Backend {
	var all []inspect.Backend
	for b, since := range t.gone {
		waited := now.Sub(since)
		if waited >= opts.Grace && (now.Sub(t.lost) >= opts.Grace || waited >= patiently*opts.Grace) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b inspect.Backend) int {
		if c := t.gone[a].Compare(t.gone[b]); c != 0 {
			return c
		}
		return a.Compare(b)
	})
	return all
}

// terminate ends the sockets of backends, as many as may be ended at once.
func (t *terminator) terminate(ctx context.Context, opts Termination, due []inspect.Backend) {
	var backends []inspect.Backend
	since := make(map[inspect.Backend]time.Time)
	for _, b := range due {
		for _, p := range endable(b.Protocol, opts.Protocols) {
			if ended := (inspect.Backend{AddrPort: b.AddrPort, Protocol: p}); !t.present.has(ended) {
				backends = append(backends, ended)
				since[ended] = t.gone[b]
			}
		}
	}
	if len(backends) == 0 {
		t.done(due)
		return
	}
	begin := time.Now()
	report, err := t.endSockets(ctx, inspect.TerminateOptions{Backends: backends, Most: opts.Rate})
	took := time.Since(begin)
	locked := make(map[netip.AddrPort]bool)
	for _, s := range report.Sockets {
		if errors.Is(s.Err, inspect.ErrLocked) {
			locked[s.Connection.Peer] = true
		}
		wasTold := false
		if s.Outcome == inspect.OutcomeFailed {
			id := s.Socket.ID()
			if t.failed[id] {
				continue
			}
			_, wasTold = t.told[id]
			t.failed[id], t.told[id] = true, begin
		}
		left := since[inspect.Backend{AddrPort: s.Connection.Peer, Protocol: s.Socket.Protocol}]
		e := SocketTerminated{s, time.Since(left)}
		t.a.count(func(t *tally) { t.termination(e) })
		if !wasTold {
			t.a.happen(e)
		}
	}
	maps.DeleteFunc(t.told, func(_ inspect.SocketID, last time.Time) bool { return begin.Sub(last) > 2*longestRest })
	// An effort that a busy node makes long is made the less often.
	t.next = begin.Add(max(time.Second, 3*took))
	switch {
	case errors.Is(err, loader.ErrNotLoaded), errors.Is(err, inspect.ErrNoProof): // nothing says which sockets are connected
	case errors.Is(err, inspect.ErrUnmigrated): // until a migration has moved them
		t.next = begin.Add(unmigratedRest + 3*took)
	case t.a.outcome(stepTerminate, err):
		if !report.More {
			// Whichever could not be ended is found by the next survey. One that was locked may not be any more.
			t.done(slices.DeleteFunc(due, func(b inspect.Backend) bool { return locked[b.AddrPort] && t.isTried(b, begin) }))
		}
		return
	}
	// What cannot be ended for long is left to the surveys, too.
	t.done(slices.DeleteFunc(due, func(b inspect.Backend) bool { return t.isTried(b, begin) }))
}

// isTried tells whether ending sockets of a backend that is gone is tried again, and not left to the surveys yet.
func (t *terminator) isTried(b inspect.Backend, now time.Time) bool {
	return now.Sub(t.gone[b]) < leftToSurveys
}

func (t *terminator) done(backends []inspect.Backend) {
	for _, b := range backends {
		delete(t.gone, b)
	}
	t.show()
}

// openSockets opens what it takes to end sockets of the datapath that is loaded: for the first time, and when the maps are others.
func (t *terminator) openSockets() error {
	dp, err := loader.Open(t.a.options().Loader)
	if err != nil {
		return err
	}
	maps := dp.InspectMaps()
	key, err := mapIDs(maps.Conn, maps.Config, maps.Hash4, maps.Hash6)
	if err != nil || t.sockets != nil && key == t.socketsOf {
		return errors.Join(err, dp.Close())
	}
	t.closeSockets()
	t.datapath, t.socketsOf = dp, key
	t.sockets, err = inspect.OpenTerminator(maps, inspect.Options{BufferSize: terminatorBuffer, MostOwners: mostNamed + 1})
	return err
}

// endSockets is [inspect.Terminator.Terminate] for the datapath that is loaded.
func (t *terminator) endSockets(ctx context.Context, opts inspect.TerminateOptions) (inspect.Report, error) {
	if err := t.openSockets(); err != nil {
		return inspect.Report{}, err
	}
	return t.sockets.Terminate(ctx, opts)
}

// terminatorBuffer is enough for the sockets of the backends that go at once: of others nothing is copied.
const terminatorBuffer = 1 << 20

// mapIDs are the ids of maps; 0 for one that is nil.
func mapIDs(all ...*ebpf.Map) (ids [4]ebpf.MapID, err error) {
	for i, m := range all {
		if m == nil {
			continue
		}
		info, err := m.Info()
		if err != nil {
			return ids, err
		}
		ids[i], _ = info.ID()
	}
	return ids, nil
}

func (t *terminator) closeSockets() {
	if t.sockets != nil {
		t.sockets.Close()
	}
	if t.datapath != nil {
		t.datapath.Close()
	}
	t.sockets, t.datapath = nil, nil
}

// backendsView is what others see of the terminator.
type backendsView struct {
	present backendSet
	gone    int
	held    string
	// missing are backends of sockets that are not in the maps, as the last survey has found.
	missing []inspect.Backend
}

func (t *terminator) show() {
	t.a.update(func(v *view) { v.backends.present, v.backends.gone = t.present, len(t.gone) })
}

// takeMissing returns what the last survey has found, once.
func (a *Agent) takeMissing() []inspect.Backend {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.view.backends.missing = nil }()
	return a.view.backends.missing
}

// presentBackends are those that are there, as far as the terminator knows. The set does not change.
func (a *Agent) presentBackends() backendSet {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view.backends.present
}

// isHash tells whether a map is the hash of a family.
func isHash(name string) bool { return name == lbmap.ReverseSK4Map || name == lbmap.ReverseSK6Map }
