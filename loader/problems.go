// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"slices"
	"strings"
	"time"
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
	// Passes tells whether it may go away without anybody's doing: another process is changing the datapath.
	Passes bool `json:"passes"`
}

// The codes of a [Problem].
const (
	ProblemNotAttached   = "not-attached"      // no hook is attached
	ProblemHooksMissing  = "hooks-missing"     // some hooks are not attached
	ProblemLinkDetached  = "link-detached"     // a pinned link is attached to nothing
	ProblemLinkUnpinned  = "link-pin-missing"  // a hook's link, or program, is not pinned
	ProblemCgroupRemoved = "cgroup-removed"    // the hooks are on a cgroup that was removed and made again
	ProblemTakenBack     = "taken-back"        // another agent has put its programs back on its hooks
	ProblemForeign       = "foreign-program"   // a link of ours holds a program that is not ours
	ProblemMisplaced     = "misplaced-program" // a link of ours holds a program of another of our hooks
	ProblemBeside        = "other-datapath"    // another datapath runs on the same sockets
	ProblemMapMissing    = "map-pin-missing"   // nothing is pinned where a map is that the programs use
	ProblemMapReplaced   = "map-replaced"      // another map is pinned than the programs use
	ProblemMapFrozen     = "map-frozen"        // another process has frozen a map: nobody can write to it any more
	ProblemHashFull      = "hash-full"         // the hash will soon evict the entries of live sockets
	ProblemUnsafeDir     = "unsafe-directory"  // others could have put something in place of the pins
	ProblemAgentOff      = "agent-off"         // another agent has removed its links, in whose place our programs are
	ProblemModeDual      = "mode-dual"         // mode dual, for longer than a migration takes
	ProblemNotRoot       = "cgroup-not-root"   // the cgroup is the root of a namespace: only sockets of a container are translated
	ProblemHashLacks     = "hash-lacks"        // the hash lacks what sockets hold: only [Datapath.CompareHash] finds out
)

// dualFor is how long mode dual may last without being a problem. A migration takes minutes.
const dualFor = time.Hour

// almostFull is from how many percent on a hash counts as full.
const almostFull = 80

// problems are what is not as it has to be. It looks at nothing but the observation.
func (o *observation) problems() []Problem {
	all := []Problem{}
	all = append(all, o.hookProblems()...)
	all = append(all, o.otherProblems()...)
	for _, s := range o.maps {
		all = append(all, s.problems(o.mode)...)
	}
	if o.unsafe != nil {
		all = append(all, Problem{Code: ProblemUnsafeDir, Text: o.unsafe.Error()})
	}
	if o.mode == ModeDual && o.modeFor > dualFor && !o.changing {
		all = append(all, Problem{
			Code: ProblemModeDual, Mend: "revsk migrate",
			Text: fmt.Sprintf("mode dual for %v: connects and releases take longer in it, and a migration has not ended it", o.modeFor.Round(time.Minute)),
		})
	}
	if o.namespaced {
		all = append(all, Problem{
			Code: ProblemNotRoot,
			Text: fmt.Sprintf("%s is the root of a cgroup namespace: only sockets of processes in it are translated", o.opts.Cgroup),
		})
	}
	for i := range all {
		all[i].Passes = o.changing
	}
	return all
}

func (o *observation) hookProblems() []Problem {
	var missing, dead, removed, back, unpinned, misplaced []string
	var foreign []Problem
	attached := 0
	for i := range o.hooks {
		h := &o.hooks[i]
		name := strings.TrimPrefix(h.program, "revsk_")
		switch {
		case h.ours():
			attached++
			if h.misplaced() {
				misplaced = append(misplaced, fmt.Sprintf("%v in %s", h.own().program, name))
			}
			if h.orphan.live() && !h.pin.hidden {
				unpinned = append(unpinned, name)
			}
		case o.isForeign(h, &foreign):
		case h.own().live():
			back = append(back, name)
		case h.pin.removed:
			removed = append(removed, name)
		case h.pin.id != 0:
			dead = append(dead, name)
		case h.isWanted(o.opts.Features):
			missing = append(missing, name)
		}
	}
	if len(removed) > 0 {
		return []Problem{{
			Code: ProblemCgroupRemoved, Mend: "revsk load",
			Text: fmt.Sprintf("the cgroup %s was removed and made again: %s", o.opts.Cgroup, strings.Join(removed, ", ")),
		}}
	}
	if attached == 0 && len(back) == 0 && len(foreign) == 0 {
		return []Problem{{Code: ProblemNotAttached, Text: "no hook is attached", Mend: "revsk load"}}
	}
	all := foreign
	say := func(code, text string, names []string, mend string) {
		if len(names) > 0 {
			all = append(all, Problem{Code: code, Text: text + ": " + strings.Join(names, ", "), Mend: mend})
		}
	}
	say(ProblemTakenBack, "taken back by another agent", back, takeOverCommand)
	say(ProblemMisplaced, "programs of other hooks are attached", misplaced, "revsk load")
	say(ProblemHooksMissing, "not attached", missing, "revsk load")
	say(ProblemLinkUnpinned, "attached, and not pinned", unpinned, "revsk load")
	if o.agentOff() {
		all = append(all, Problem{
			Code: ProblemAgentOff, Mend: o.handBackCommand(),
			Text: fmt.Sprintf("another agent has removed its links from %s: it is off, and may write no services", o.kept.AgentLinks),
		})
	}
	say(ProblemLinkDetached, "detached, but pinned", dead, "revsk load")
	return all
}

// isForeign tells whether somebody has put a program into the link of a hook, and adds that to the problems. It is for its
// owner to say whether it may go.
func (o *observation) isForeign(h *hookState, problems *[]Problem) bool {
	foreign, is := h.foreign()
	if is {
		p := Problem{Code: ProblemForeign, Text: fmt.Sprintf("somebody has put %v into the link %s", foreign.program, h.pin.path)}
		if h.saved.id == 0 {
			p.Mend = detachCommand(h.pin.path) + " && revsk load"
		}
		*problems = append(*problems, p)
	}
	return is
}

// detachCommand detaches whatever is in a link.
func detachCommand(pin string) string { return "bpftool link detach pinned " + pin }

// agentOff tells whether nothing of another agent's is left where its links were pinned, while ours are in them.
func (o *observation) agentOff() bool {
	if o.kept == nil || o.kept.AgentLinks == "" || !o.takenOver() {
		return false
	}
	return !slices.ContainsFunc(o.hooks, func(h hookState) bool {
		return h.agentPin.id != 0 || h.saved.id != 0 && (h.takenBack() || besideReference(h))
	})
}

// otherProblems are about programs that run on the same sockets: each sees the addresses that the other has
// translated.
func (o *observation) otherProblems() []Problem {
	by := make(map[string][]string) // by cgroup
	var cgroups []string
	for i := range o.hooks {
		for _, a := range o.hooks[i].others() {
			if by[a.cgroup] == nil {
				cgroups = append(cgroups, a.cgroup)
			}
			by[a.cgroup] = append(by[a.cgroup], a.program.String())
		}
	}
	var all []Problem
	for _, cgroup := range cgroups {
		p := Problem{
			Code: ProblemBeside,
			Text: fmt.Sprintf("another datapath runs on %s, on the same sockets: %s", cgroup, strings.Join(by[cgroup], ", ")),
		}
		if cgroup == o.opts.Cgroup && slices.ContainsFunc(o.hooks, besideReference) {
			p.Mend = takeOverCommand
		}
		all = append(all, p)
	}
	return all
}

// takeOverCommand takes over from the agent, wherever its links are pinned.
const takeOverCommand = "revsk load --takeover"

// handBackCommand gives the hooks back.
func (o *observation) handBackCommand() string {
	if o.mode == ModeStorage {
		return "revsk rollback && revsk unload --hand-back"
	}
	return "revsk unload --hand-back"
}

func besideReference(h hookState) bool {
	_, beside := h.beside(h.own())
	return beside
}

func (s mapState) problems(mode Mode) []Problem {
	used := slices.DeleteFunc(slices.Clone(s.used), func(use mapUse) bool { return !use.own })
	var all []Problem
	switch {
	case len(used) > 0 && s.pinned == 0:
		id := used[len(used)-1].id
		p := Problem{
			Code: ProblemMapMissing,
			Text: fmt.Sprintf("nothing is pinned at %s, and the programs use map %d", s.pin, id),
			Mend: fmt.Sprintf("bpftool map pin id %d %s", id, s.pin),
		}
		if ownMap(s.name) {
			p.Mend = "revsk load"
		}
		all = append(all, p)
	case len(used) > 0 && slices.ContainsFunc(used, func(use mapUse) bool { return use.id != s.pinned }):
		p := Problem{
			Code: ProblemMapReplaced,
			Text: fmt.Sprintf("map %d is pinned at %s, and programs use map %d", s.pinned, s.pin, used[0].id),
			Mend: "revsk load",
		}
		if s.err != nil { // a load refuses it
			p.Text, p.Mend = fmt.Sprintf("%s: %v", p.Text, s.err), ""
		}
		all = append(all, p)
	}
	if s.frozen {
		all = append(all, Problem{
			Code: ProblemMapFrozen,
			Text: fmt.Sprintf("another process has frozen the map %d at %s: nobody can write to it", s.pinned, s.pin),
		})
	}
	hash := s.name == mapReverse4 || s.name == mapReverse6
	if hash && mode != ModeStorage && s.size > 0 && s.entries*100 >= s.size*almostFull {
		all = append(all, Problem{
			Code: ProblemHashFull,
			Text: fmt.Sprintf("%s has %d entries of %d, and evicts those of live sockets when it is full", s.name, s.entries, s.size),
			Mend: "revsk migrate",
		})
	}
	return all
}
