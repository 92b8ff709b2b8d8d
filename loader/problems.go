// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Problem is something that is not as it has to be.
type Problem struct {
	// Code is one of the Problem constants, which do not change.
	Code string `json:"code"`
	// Text says what is the case, in a sentence without its full stop.
	Text string `json:"text"`
	// Mend is the command that mends it, with its options for this datapath's places left out; empty
	// if there is none.
	Mend string `json:"mend,omitempty"`
	// Passes tells whether it goes away without anybody's doing.
	Passes bool `json:"passes"`
}

// The codes of a [Problem].
const (
	ProblemNotAttached   = "not-attached"     // no hook is attached
	ProblemHooksMissing  = "hooks-missing"    // some hooks are not attached
	ProblemLinkDetached  = "link-detached"    // a pinned link is attached to nothing
	ProblemCgroupRemoved = "cgroup-removed"   // the hooks are on a cgroup that was removed and made again
	ProblemTakenBack     = "taken-back"       // another agent has put its programs back on its hooks
	ProblemBeside        = "other-datapath"   // another datapath runs on the same sockets
	ProblemMapMissing    = "map-pin-missing"  // nothing is pinned where a map is that the programs use
	ProblemMapReplaced   = "map-replaced"     // another map is pinned than the programs use
	ProblemHashFull      = "hash-full"        // the hash will soon evict the entries of live sockets
	ProblemUnsafeDir     = "unsafe-directory" // others could have put something in place of the pins
)

// almostFull is from how many percent on a hash counts as full.
const almostFull = 80

// problems are what is not as it has to be. It looks at nothing but the observation.
func (o *observation) problems() []Problem {
	all := []Problem{}
	all = append(all, o.hookProblems()...)
	all = append(all, o.otherProblems()...)
	for _, mo := range o.maps {
		all = append(all, mo.problems(o.mode)...)
	}
	if o.unsafe != nil {
		all = append(all, Problem{Code: ProblemUnsafeDir, Text: o.unsafe.Error()})
	}
	return all
}

func (o *observation) hookProblems() []Problem {
	var missing, dead, removed, back []string
	attached := 0
	for _, ho := range o.hooks {
		name := strings.TrimPrefix(ho.program, "revsk_")
		switch {
		case ho.ours:
			attached++
		case ho.saved.id != 0 && ho.own.id != 0:
			back = append(back, name)
		case ho.removed:
			removed = append(removed, name)
		case ho.dead:
			dead = append(dead, name)
		case ho.isWanted(o.opts.Features):
			missing = append(missing, name)
		}
	}
	if len(removed) > 0 {
		return []Problem{{
			Code: ProblemCgroupRemoved, Mend: "revsk load",
			Text: fmt.Sprintf("the cgroup %s was removed and made again: %s", o.opts.Cgroup, strings.Join(removed, ", ")),
		}}
	}
	if attached == 0 && len(back) == 0 {
		return []Problem{{Code: ProblemNotAttached, Text: "no hook is attached", Mend: "revsk load"}}
	}
	var all []Problem
	if len(back) > 0 {
		all = append(all, Problem{
			Code: ProblemTakenBack, Text: "taken back by another agent: " + strings.Join(back, ", "), Mend: takeOverCommand,
		})
	}
	if len(missing) > 0 {
		all = append(all, Problem{Code: ProblemHooksMissing, Text: "not attached: " + strings.Join(missing, ", "), Mend: "revsk load"})
	}
	if len(dead) > 0 {
		all = append(all, Problem{Code: ProblemLinkDetached, Text: "detached, but pinned: " + strings.Join(dead, ", "), Mend: "revsk load"})
	}
	return all
}

// otherProblems are about programs that run on the same sockets: each sees the addresses that the other has
// translated.
func (o *observation) otherProblems() []Problem {
	by := make(map[string][]string) // by cgroup
	var cgroups []string
	for _, ho := range o.hooks {
		for _, a := range ho.others {
			if by[a.cgroup] == nil {
				cgroups = append(cgroups, a.cgroup)
			}
			by[a.cgroup] = append(by[a.cgroup], a.occupant.String())
		}
	}
	var all []Problem
	for _, cgroup := range cgroups {
		p := Problem{
			Code: ProblemBeside,
			Text: fmt.Sprintf("another datapath runs on %s, on the same sockets: %s", cgroup, strings.Join(by[cgroup], ", ")),
		}
		if cgroup == o.opts.Cgroup && o.beside((*hookObservation).besideReference) {
			p.Mend = o.leaveCommand() + " && " + takeOverCommand
		}
		all = append(all, p)
	}
	return all
}

// takeOverCommand takes over from the agent, wherever its links are pinned.
const takeOverCommand = "revsk load --takeover"

// leaveCommand takes our programs off hooks on which another agent's run as well.
func (o *observation) leaveCommand() string {
	if slices.ContainsFunc(o.hooks, func(ho hookObservation) bool { return ho.saved.id != 0 }) {
		return "revsk rollback && revsk unload --hand-back"
	}
	return "revsk unload"
}

func (o *observation) beside(is func(*hookObservation) bool) bool {
	for i := range o.hooks {
		if is(&o.hooks[i]) {
			return true
		}
	}
	return false
}

func (ho *hookObservation) besideReference() bool {
	return slices.ContainsFunc(ho.others, func(a attachment) bool { return ho.isReference(a.occupant) })
}

// checkAlone returns an error wrapping [ErrOtherDatapath] if another datapath runs on the same sockets, of
// revsk on the same cgroup, or of whomever on one above or below.
func (o *observation) checkAlone() error {
	for _, ho := range o.hooks {
		for _, a := range ho.others {
			if a.cgroup != o.opts.Cgroup || isOurs(a.occupant) {
				return fmt.Errorf("%s: %w: %v", ho.program, ErrOtherDatapath, a)
			}
		}
	}
	return nil
}

func (mo mapObservation) problems(mode Mode) []Problem {
	var all []Problem
	switch {
	case len(mo.used) > 0 && mo.pinned == 0:
		id := mo.used[len(mo.used)-1]
		all = append(all, Problem{
			Code: ProblemMapMissing,
			Text: fmt.Sprintf("nothing is pinned at %s, and the programs use map %d", mo.pin, id),
			Mend: fmt.Sprintf("bpftool map pin id %d %s", id, mo.pin),
		})
	case len(mo.used) > 0 && slices.ContainsFunc(mo.used, func(id ebpf.MapID) bool { return id != mo.pinned }):
		all = append(all, Problem{
			Code: ProblemMapReplaced,
			Text: fmt.Sprintf("map %d is pinned at %s, and programs use map %d", mo.pinned, mo.pin, mo.used[0]),
			Mend: "revsk load",
		})
	}
	hash := mo.name == mapReverse4 || mo.name == mapReverse6
	if hash && mode != ModeStorage && mo.size > 0 && mo.entries*100 >= mo.size*almostFull {
		all = append(all, Problem{
			Code: ProblemHashFull,
			Text: fmt.Sprintf("%s has %d entries of %d, and evicts those of live sockets when it is full", mo.name, mo.entries, mo.size),
			Mend: "revsk migrate",
		})
	}
	return all
}
