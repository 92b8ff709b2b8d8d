// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stoppable are commands that hold a lock for long.
var stoppable = []string{"mode dual", "load for the first time", "migrate", "load --takeover", "load again", "unload", "rollback", "unload --hand-back", "migrate --to mirror"}

// A command that is stopped half way holds the lock. Others that change something say so, at once or after --wait;
// those that only read do not wait; applications notice nothing; and when it continues, it finishes.
func TestStoppedCommands(t *testing.T) {
	until := time.Now().Add(*duration / 5)
	n := newNode(t)
	stops := 0
	for part := 1; part <= 4; part++ { // of the calls that change something
		for _, name := range stoppable {
			if time.Now().After(until) && stops > 0 {
				break
			}
			stops++
			s := scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
			r := n.record(s)
			known := n.comeBack(s, r.before)
			var changing []position
			flocked := false
			for _, p := range r.calls {
				flocked = flocked || p.kind == "flock"
				if flocked && p.kind != "flock" && changes(p.kind) {
					changing = append(changing, p)
				}
			}
			at := changing[(len(changing)-1)*part/4]
			count := make(counter)
			met := false
			o := n.intercept(func(c call) verdict {
				if !c.concerns() || count.next(c) != at {
					return verdict{}
				}
				met = true
				return verdict{last: true, during: func() { n.besideStopped(fmt.Sprint(s.name, " stopped before ", at), r) }}
			}, s.args)
			if !met {
				continue // it went another way this time
			}
			require.Equal(t, 0, o.code, "%s, stopped before %v: %v", s.name, at, o)
			now, _ := n.look(known)
			require.Empty(t, difference(r.after, now), "%s, stopped before %v", s.name, at)
		}
	}
	figure(t, "stopped", "%d commands were stopped.", stops)
}

// besideStopped does what others do beside a command that is stopped.
func (n *node) besideStopped(what string, r *recorded) {
	n.Helper()
	for key, shows := range n.answers() {
		if shows != r.before[key] && shows != r.after[key] {
			n.Errorf("%s: %s shows %s, not %s", what, key, shows, r.before[key])
		}
	}
	for _, line := range []string{"status", "list"} {
		o := n.run(words(line)...) // it would never end if it waited
		if wrong := misleading(o.stderr, 0); wrong != "" && !strings.Contains(o.stderr, "not loaded completely: another process is loading or unloading it") {
			n.Errorf("%s: %s: %s: %v", what, line, wrong, o)
		}
	}
	for _, line := range []string{"load", "mode storage --force", "migrate", "load --wait 200ms", "unload --wait 200ms", "rollback --wait 200ms"} {
		o := n.run(words(line)...)
		if o.code != 1 || !strings.Contains(o.stderr, "locked by another process") || !strings.Contains(o.stderr, "wait for the other") {
			n.Errorf("%s: %s: %v", what, line, o)
		}
	}
}

// together are commands that are given at the same time.
var together = []struct {
	prepare func(n *node)
	lines   []string
}{
	{loaded, []string{"load --wait 1m", "load --wait 1m"}},
	{inMode("rollback", "mode dual"), []string{"load --wait 1m", "migrate --wait 1m"}},
	{takenOver, []string{"load --takeover --wait 1m", "unload --hand-back --wait 1m"}},
	{inMode("rollback", "mode dual"), []string{"migrate --wait 1m", "rollback --wait 1m"}},
	{loaded, addServices(8)},
	{bare, []string{"load --legacy-entries 1000 --wait 1m", "load --legacy-entries 1000 --wait 1m"}},
	{withAgent, []string{"load --takeover --wait 1m", "load --takeover --wait 1m"}},
	{loaded, []string{"unload --wait 1m", "load --wait 1m"}},
	{loaded, []string{"mode dual --wait 1m", "rollback --wait 1m"}},
	{inMode("mode dual"), []string{"migrate --wait 1m", "migrate --wait 1m"}},
	{loaded, []string{"rollback --wait 1m", "rollback --wait 1m"}},
	{loaded, []string{"migrate --to mirror --wait 1m", "mode dual --wait 1m"}},
	{loaded, []string{"service delete 10.96.0.2:53/udp", "service delete 10.96.0.2:53/udp", "service add 10.96.0.3:53/udp --backend 10.1.0.1:53"}},
	{loaded, []string{"load", "load", "load", "mode dual", "rollback"}},
}

func addServices(n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("service add 10.96.1.%d:80/tcp --backend 10.1.0.1:80,10.1.1.%d:80", i, i))
	}
	return lines
}

// Commands at the same time: what applications see is right, each succeeds or says why not, and the node is as if
// those that succeeded had come one after another.
func TestCommandsTogether(t *testing.T) {
	until := time.Now().Add(*duration / 5)
	n := newNode(t)
	done := 0
	for _, x := range together {
		if time.Now().After(until) && done > 0 {
			break
		}
		done++
		x.prepare(n)
		before, known := n.look(nil)
		outcomes := make([]outcome, len(x.lines))
		var all sync.WaitGroup
		for i, line := range x.lines {
			all.Go(func() { outcomes[i] = n.run(words(line)...) })
		}
		all.Wait()
		got, _ := n.look(known)
		what := strings.Join(x.lines, " | ")
		for key, shows := range n.answers() {
			if shows != before[key] {
				t.Errorf("%s: %s shows %s, not %s", what, key, shows, before[key])
			}
		}
		var succeeded []string
		for i, o := range outcomes {
			switch {
			case o.code == 0:
				succeeded = append(succeeded, x.lines[i])
			case strings.Contains(o.stderr, "locked by another process"), strings.Contains(o.stderr, "not loaded"),
				strings.Contains(o.stderr, "no such service"), strings.Contains(o.stderr, "stay in"):
			default:
				t.Errorf("%s: %s: %v", what, x.lines[i], o)
			}
		}
		require.NotEmpty(t, succeeded, what)
		n.sameAsInTurn(what, x.prepare, succeeded, got)
	}
	figure(t, "together", "%d of %d sets of commands.", done, len(together))
}

// sameAsInTurn compares the state that commands have led to together with those to which they lead one after another.
func (n *node) sameAsInTurn(what string, prepare func(*node), lines []string, got state) {
	n.Helper()
	var differences []string
	for turn := range lines {
		prepare(n)
		_, known := n.look(nil)
		for i := range lines {
			n.run(words(lines[(turn+i)%len(lines)])...)
		}
		want, _ := n.look(known)
		d := difference(comparable(want), comparable(got))
		if d == "" {
			return
		}
		differences = append(differences, d)
	}
	n.Errorf("%s: the node is unlike after any order:\n\t%s", what, strings.Join(differences, "\n\tor "))
}

// comparable is a state without what depends on the order in which indexes were given to services, and on which of two
// loads of the same programs came last.
func comparable(s state) state {
	out := make(state)
	for key, value := range s {
		if strings.Contains(key, "/tc/globals/") && !strings.Contains(key, "reverse_sk") {
			value = fmt.Sprint(strings.Count(value, "=")) + " entries"
		}
		out[key] = value
	}
	return out
}
