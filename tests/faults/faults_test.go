// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// scenario is a command on a node where it has something to do.
type scenario struct {
	name    string
	args    []string
	prepare func(n *node)
	back    []string // commands that lead back, but for what they cannot
	// goesOn says that a run that fails may have done part of its work, as its help says, and the same command
	// goes on. What applications see is right all the same. Other commands end with exit code 3 then.
	goesOn bool
	// mayLeak says that a run that is killed may leave an entry of a socket of its own in another agent's hash.
	mayLeak bool
}

func words(s string) []string { return strings.Fields(s) }

// bare is a node without revsk and without an agent.
func bare(n *node) {
	if n.agent != nil {
		require.NoError(n, n.agent.Close())
		n.agent = nil
	}
	n.clean()
}

func loaded(n *node) {
	bare(n)
	n.must(words("load --legacy-entries 1000")...)
	n.serve()
	n.openSockets()
}

func inMode(args ...string) func(n *node) {
	return func(n *node) {
		loaded(n)
		for _, a := range args {
			n.must(words(a)...)
		}
	}
}

func withAgent(n *node) {
	n.clean()
	n.startAgent()
	n.openSockets()
}

func takenOver(n *node) {
	withAgent(n)
	n.must(words("load --takeover")...)
}

var scenarios = []scenario{
	{name: "mode dual", args: words("mode dual"), prepare: loaded, back: []string{"mode storage --force"}},
	{name: "load again", args: words("load"), prepare: loaded},
	{name: "service add", args: words("service add 10.96.0.9:80/tcp --backend 10.1.0.1:80,10.1.0.2:80"), prepare: loaded,
		back: []string{"service delete 10.96.0.9:80/tcp"}, goesOn: true},
	{name: "list", args: words("list"), prepare: loaded},
	{name: "status", args: words("status"), prepare: loaded},
	{name: "unload", args: words("unload"), prepare: loaded, back: []string{"load"}},
	{name: "load for the first time", args: words("load --legacy-entries 1000"), prepare: bare},
	{name: "rollback", args: words("rollback"), prepare: loaded, back: []string{"migrate"}, goesOn: true},
	{name: "migrate", args: words("migrate"), prepare: inMode("rollback", "mode dual"), back: []string{"rollback", "mode dual"}, goesOn: true},
	{name: "migrate --engine pidfd", args: words("migrate --engine pidfd"), prepare: inMode("rollback", "mode dual"),
		back: []string{"rollback", "mode dual"}, goesOn: true},
	{name: "migrate --to mirror", args: words("migrate --to mirror"), prepare: loaded, back: []string{"mode storage --force"}, goesOn: true},
	{name: "migrate --dry-run", args: words("migrate --dry-run"), prepare: inMode("mode dual")},
	{name: "mode storage", args: words("mode storage --force"), prepare: inMode("mode dual"), back: []string{"mode dual"}},
	{name: "service delete", args: words("service delete 10.96.0.2:53/udp"), prepare: loaded, goesOn: true},
	{name: "service list", args: words("service list"), prepare: loaded},
	{name: "terminate --dry-run", args: words("terminate --all-gone --dry-run"), prepare: loaded},
	{name: "load with another mode and feature", args: words("load --mode dual --nodeport=false"), prepare: loaded,
		back: []string{"load --mode storage --force --nodeport"}},
	{name: "unload --purge", args: words("unload --purge"), prepare: loaded, goesOn: true},
	{name: "load --takeover --mode dual", args: words("load --takeover --mode dual"), prepare: withAgent, back: []string{"unload --hand-back"}, mayLeak: true},
	{name: "load --takeover", args: words("load --takeover"), prepare: withAgent, back: []string{"unload --hand-back"}, goesOn: true},
	{name: "unload --hand-back", args: words("unload --hand-back"), prepare: takenOver, back: []string{"load --takeover"}, goesOn: true},
}

// recorded is what a scenario does when nothing fails.
type recorded struct {
	before, after state
	calls         []position // of those that can fail
}

func (n *node) record(s scenario) *recorded {
	n.Helper()
	s.prepare(n)
	r := &recorded{}
	var known ids
	r.before, known = n.look(nil)
	count := make(counter)
	o := n.intercept(func(c call) verdict {
		if c.concerns() {
			r.calls = append(r.calls, count.next(c))
		}
		return verdict{}
	}, s.args)
	require.Equal(n, 0, o.code, "%s: %v", s.name, o)
	r.after, _ = n.look(known)
	return r
}

// injection is a fault that a command meets.
type injection struct {
	scenario
	at    position
	errno unix.Errno // 0: it is killed before the call
}

type injectionKey struct {
	at    position
	errno unix.Errno
}

func (i injection) key() injectionKey { return injectionKey{i.at, i.errno} }

func (i injection) String() string {
	what := "killed before"
	if i.errno != 0 {
		what = unix.ErrnoName(i.errno) + " of"
	}
	return fmt.Sprintf("%s: %s %v", i.name, what, i.at)
}

// Faults by their value: those at places in the code that no other command was seen at, with an error of each class,
// those with other errors or at other places of the command, and those in later turns of a loop, or of a function that is called
// from one place several times.
const (
	newPlaces = iota
	places
	repetitions
	values
)

// faults are all injections that a command can meet, by value.
type faults [values][]injection

// sorted sorts all faults that a command's calls can have. Those of a value come in an order that is the same for a
// seed, kinds of calls and errors by turns, so that a short run meets all of them. met are the places of others.
func sorted(s scenario, r *recorded, met map[position]bool) (all faults) {
	first := make(map[string]int) // by kind: which of the errors of a class is first
	for _, p := range r.calls {
		value := repetitions
		if p.n == 0 {
			value = places
			if place := (position{kind: p.kind, site: p.site.innermost()}); !met[place] {
				met[place] = true
				value = newPlaces
			}
		}
		classes := make(map[errnoClass]bool)
		first[p.kind]++
		for i := range errnos[p.kind] {
			e := errnos[p.kind][(i+first[p.kind])%len(errnos[p.kind])]
			v := value
			if value == newPlaces && classes[classOf(e)] {
				v = places // the code takes both for the same
			}
			classes[classOf(e)] = true
			all[v] = append(all[v], injection{s, p, e})
		}
		if changes(p.kind) {
			value = max(newPlaces, value-1) // there are fewer of them, and what they leave depends on the command
			all[value] = append(all[value], injection{s, p, 0})
		}
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	for _, some := range all {
		random.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		turns := make(map[string]int)
		turn := make(map[injectionKey]int)
		for _, x := range some {
			kind := fmt.Sprint(x.at.kind, x.errno)
			turn[x.key()] = turns[kind]
			turns[kind]++
		}
		slices.SortStableFunc(some, func(a, b injection) int { return turn[a.key()] - turn[b.key()] })
	}
	return all
}

// Each command meets every error of every call, and is killed before each that changes something. Then the node is
// as before or as after, what applications see is right, the message does not mislead, and the same command succeeds.
func TestFaults(t *testing.T) {
	until := time.Now().Add(*duration)
	n := newNode(t)
	type work struct {
		*recorded
		todo faults
		done [values]int
	}
	atOnce := 8 // on the same node
	if *duration > time.Minute {
		atOnce = 100
	}
	all := make(map[string]*work)
	met := make(map[position]bool)
	counts := make(map[string]int)
	for value := range values {
		for left := true; left; {
			left = false
			for _, s := range scenarios {
				if only := *onlyScenario; only != "" && only != s.name || time.Now().After(until) {
					continue
				}
				w := all[s.name]
				if w == nil {
					r := n.record(s)
					w = &work{recorded: r, todo: sorted(s, r, met)}
					all[s.name] = w
				}
				begin, before := time.Now(), w.done[value]
				for range atOnce {
					if w.done[value] == len(w.todo[value]) || time.Now().After(until) {
						break
					}
					left = true
					x := w.todo[value][w.done[value]]
					w.done[value]++
					counts[n.inject(x, w.recorded)]++
				}
				if atOnce > 8 {
					t.Logf("%s: %d, %.2f s each", s.name, w.done, time.Since(begin).Seconds()/float64(max(1, w.done[value]-before)))
				}
			}
		}
	}
	var done, todo [values]int
	for name, w := range all {
		line := name + ":"
		for value := range values {
			done[value] += w.done[value]
			todo[value] += len(w.todo[value])
			line += fmt.Sprintf(" %d of %d;", w.done[value], len(w.todo[value]))
		}
		t.Log(line)
	}
	of := func(value int) string { return thousands(done[value]) + " of " + thousands(todo[value]) }
	figure(t, "faults", "%s faults were made in calls of %d commands: %s at different places in the code, with an error of each class, %s at the same places with "+
		"another error or for another command, or as kills in later turns of loops, and %s in later turns. Of these: %s.",
		thousands(sum(counts)), len(all), of(newPlaces), of(places), of(repetitions), describeCounts(counts))
}

// comeBack makes the node one on which the scenario begins.
func (n *node) comeBack(s scenario, before state) ids {
	n.Helper()
	now, known := n.look(nil)
	if difference(before, now) == "" {
		return known
	}
	for _, line := range s.back {
		n.run(words(line)...)
	}
	if now, known = n.look(nil); s.back != nil && difference(before, now) == "" {
		return known
	}
	s.prepare(n)
	now, known = n.look(nil)
	if d := difference(before, now); d != "" {
		n.Fatalf("%s: before it\n\t%s", s.name, d)
	}
	return known
}

// inject makes a fault and checks what comes of it.
func (n *node) inject(x injection, r *recorded) (kind string) {
	n.Helper()
	before, known := r.before, n.comeBack(x.scenario, r.before)
	count := make(counter)
	met := false
	o := n.interceptOnly(x.at.kind, func(c call) verdict {
		if !c.concerns() || count.next(c) != x.at {
			return verdict{}
		}
		met = true
		return verdict{errno: x.errno, kill: x.errno == 0, last: true}
	}, x.args)
	if !met {
		return "not met"
	}
	bad := func(format string, args ...any) {
		n.Helper()
		n.Errorf("%v\n\t%s\n\t%v", x, fmt.Sprintf(format, args...), o)
	}
	difference := difference
	if x.mayLeak && x.errno == 0 {
		difference = differenceWithoutLeaks
	}
	now, _ := n.look(known)
	fromBefore, fromAfter := difference(before, now), difference(r.after, now)
	for _, s := range n.sockets {
		key := "socket " + s.name
		if now[key] != before[key] && now[key] != r.after[key] {
			bad("%s shows %s, not %s", s.name, now[key], before[key])
		}
	}
	kind = "refused"
	switch {
	case x.errno == 0:
		kind = "killed"
	case o.code == 0 && fromAfter != "":
		bad("it says that it succeeded:\n\t%s", fromAfter)
	case o.code != 0 && fromBefore != "" && fromAfter != "" && !x.goesOn && o.code != 3:
		bad("neither before:\n\t%s\n\tnor after:\n\t%s", fromBefore, fromAfter)
	}
	if x.errno != 0 {
		if o.code == 0 {
			kind = "made good"
		} else if wrong := misleading(o.stderr, x.errno); wrong != "" {
			bad("%s", wrong)
		}
	}
	if o.code <= 0 && fromAfter == "" {
		return kind // nothing is left to do: some commands say so
	}
	if n.faults++; fromBefore == "" && n.faults%8 != 0 {
		return kind // what comes of the same command from there is known
	}
	if again := n.run(x.args...); again.code != 0 {
		bad("the same again: %v", again)
	} else {
		last, _ := n.look(known)
		if d := difference(r.after, last); d != "" {
			bad("the same again leads to:\n\t%s", d)
		}
	}
	return kind
}

// Faults of which something wrong has come once.
func TestFaultsThatWereFound(t *testing.T) {
	n := newNode(t)
	for _, found := range []string{
		"load again: EPERM of bpf LINK_UPDATE 1, in loader.swapLinked",                                   // was said to be another program's
		"unload: EACCES of fstatat /sys/fs/bpf/node/revsk 1, in internal/filelock.InPlace < loader.lock", // was said not to be loaded
		"migrate: EMFILE of bpf MAP_CREATE 1, in internal/bpfiter.Load < migrate.(*programs).load",       // the kernel was said to be too old
		"load for the first time: ENOLCK of flock /sys/fs/bpf/node/revsk 1, in",                          // left the directory
		"list: EMFILE of bpf MAP_CREATE 1, in ",                                                          // a capability was said to be missing
		"load --takeover: killed before bpf MAP_UPDATE_ELEM 1, in loader.setFeatures.do",                 // where the agent's links are was forgotten
		"unload --hand-back: EPERM of bpf MAP_LOOKUP_ELEM 1, in loader.readKept < loader.observePins",    // was left for somebody else's, as a success
	} {
		name, _, _ := strings.Cut(found, ": ")
		s := scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
		r := n.record(s)
		byValue := sorted(s, r, make(map[position]bool))
		all := slices.Concat(byValue[:]...)
		i := slices.IndexFunc(all, func(x injection) bool { return strings.HasPrefix(x.String(), found) })
		require.GreaterOrEqual(t, i, 0, "no such fault: %s", found)
		n.inject(all[i], r)
	}
}
