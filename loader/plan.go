// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
)

// What a call does is decided here, from an observation and the options, and from nothing else. A plan is a
// list of steps, or an error that says why there is none.

// planLoad makes the datapath run as the options say. It returns the features, too, that it is to have.
//
// The mode is set before the first hook is attached, and again after the last one is replaced. Hooks come in the
// order readers, then writers.
func planLoad(o *observation) (steps []step, f Features, err error) {
	if f, err = o.wantedFeatures(); err != nil {
		return nil, f, err
	}
	if err := o.checkLoad(f); err != nil {
		return nil, f, err
	}
	var places []*place // of the hooks that the features need
	for i := range o.hooks {
		h := &o.hooks[i]
		p := o.choose(h)
		if h.isWanted(&f) {
			if err := o.checkPlace(p); err != nil {
				return nil, f, err
			}
			places = append(places, p)
		} else if p.fromAgent && p.now.live() {
			steps = append(steps, leave{h.reference})
		}
	}
	if err := o.checkTakeover(places); err != nil {
		return nil, f, err
	}
	if o.agent != nil {
		if err := o.agent.check(o.opts.Said); err != nil {
			return nil, f, err
		}
	}
	modes, after, err := o.planModes(places)
	if err != nil {
		return nil, f, err
	}

	steps = append(append(o.planDirsAndMaps(&f), steps...), loadPrograms{})
	if slices.ContainsFunc(places, (*place).takesOver) {
		steps = append(steps, o.planDir(o.opts.formerDir())...)
	}
	steps = append(steps, modes...)
	if o.loaded && o.mode != ModeLegacy && slices.ContainsFunc(places, func(p *place) bool { return p.leaving.live() }) {
		steps = append(steps, fillHash{}) // until ours are attached, only the agent's programs run, which know the hash only
	}
	for _, p := range places {
		steps = append(steps, o.planKeep(p)...)
	}
	// While other programs ran, or none, applications may have gone elsewhere, and the tuples of their
	// sockets are out of date. So the hooks look at the service of each tuple again until the application
	// uses it.
	if o.loaded && slices.ContainsFunc(places, func(p *place) bool { return p.remembers() && (!p.oursRuns() || p.misplaced()) }) {
		steps = append(steps, setMark{})
	}
	// What was found out about the agent's programs cannot be found out again once ours are in their place.
	first := o.kept == nil && o.agent != nil
	if first {
		steps = append(steps, o.planState(f, places)...)
	}
	handover, rest := o.planHandover(places)
	steps = append(steps, handover...)
	for _, p := range rest {
		steps = append(steps, o.planHook(p)...)
	}
	steps = append(steps, o.planVersions()...)
	steps = append(steps, after...)
	if !first {
		steps = append(steps, o.planState(f, places)...)
	}
	steps = append(steps, o.planUnwanted(&f)...)
	// A directory is made once, whoever needs it.
	made := make(map[makeDir]bool)
	return slices.DeleteFunc(steps, func(s step) bool {
		dir, ok := s.(makeDir)
		again := ok && made[dir]
		if ok {
			made[dir] = true
		}
		return again
	}), f, nil
}

// wantedFeatures are those of the datapath, or the defaults, or on the first takeover the agent's, with what
// the options change of them.
func (o *observation) wantedFeatures() (Features, error) {
	f := DefaultFeatures()
	switch {
	case o.kept != nil:
		f = o.kept.Features
	case o.running != nil:
		f = *o.running
	}
	if o.agent != nil {
		o.agent.apply(o, &f)
	}
	if o.opts.Features != nil {
		f = *o.opts.Features
	}
	if o.opts.ChangeFeatures != nil {
		o.opts.ChangeFeatures(&f)
	}
	return f, f.check()
}

// checkLoad returns why there can be no load, whatever the hooks are like.
func (o *observation) checkLoad(f Features) error {
	if o.unsafe != nil {
		return o.unsafe
	}
	if o.keptErr != nil {
		return o.keptErr
	}
	for i := range o.hooks {
		if err := o.hooks[i].pin.err; err != nil {
			return err
		}
	}
	for i := range o.hooks {
		h := &o.hooks[i]
		for _, a := range h.others() {
			if a.cgroup != o.opts.Cgroup || a.isOurs() {
				if o.elsewhere != "" {
					return fmt.Errorf("%s: %w: %v, whose pins are in %s", h.program, ErrOtherDatapath, a, filepath.Dir(o.elsewhere))
				}
				return fmt.Errorf("%s: %w: %v", h.program, ErrOtherDatapath, a)
			}
		}
	}
	for i := range o.maps {
		if err := o.maps[i].checkPin(); err != nil && needsMap(o.maps[i].name, &f) {
			return err
		}
	}
	return o.checkVersions()
}

// checkPin returns why a map can neither be used nor made. None is made in the place of one that attached
// programs use and that has entries: they would be without them from then on.
func (s *mapState) checkPin() error {
	if s.err != nil {
		return s.err
	}
	for _, use := range s.used {
		if s.pinned == 0 && use.has {
			return fmt.Errorf("%w: nothing is pinned at %s, and attached programs use a map with entries (to pin it there: bpftool map pin id %d %s)",
				ErrMapsReplaced, s.pin, use.id, s.pin)
		}
	}
	return nil
}

// lost is a map of this datapath's whose pin was removed, and which its programs use; 0: there is none.
func (s *mapState) lost() ebpf.MapID {
	for _, use := range slices.Backward(s.used) { // the newest first
		if s.pinned == 0 && ownMap(s.name) && use.own {
			return use.id
		}
	}
	return 0
}

// place is where the program of a hook will be attached: it replaces an attached program, or gets a new link.
type place struct {
	*hookState
	now attachment
	// fromAgent: it is another agent's, and nothing is kept of it yet.
	fromAgent bool
	// leaving is a program of ours that runs beside the agent's and is to be detached.
	leaving attachment
}

// oursRuns tells whether a program of ours is there.
func (p *place) oursRuns() bool { return !p.fromAgent && p.ours() }

// takesOver tells whether ours replaces a program of another agent's.
func (p *place) takesOver() bool { return p.now.live() && !p.oursRuns() }

// choose finds the place for a hook.
func (o *observation) choose(h *hookState) *place {
	p := &place{hookState: h, now: h.own()}
	_, beside := h.beside(p.now)
	if !o.opts.Takeover || p.now.live() && !(h.ours() && beside) {
		return p
	}
	if theirs := h.agent(); theirs.live() || h.agentPin.err != nil {
		if h.ours() { // an agent that was off, or has lost its pins, has made new links
			p.leaving = p.now
		}
		p.now, p.fromAgent = theirs, true
	}
	return p
}

// checkPlace makes sure that our program may go to a place, and that no program of the reference runs
// beside it.
func (o *observation) checkPlace(p *place) error {
	foreign, isForeign := p.foreign()
	switch {
	case isForeign && p.saved.id == 0:
		return fmt.Errorf("%s: %w: %v is in the link %s (to detach it: %s)", p.program, ErrForeignProgram, foreign.program, p.pin.path, detachCommand(p.pin.path))
	case p.fromAgent && p.agentPin.err != nil:
		return p.agentPin.err
	case p.fromAgent && !p.isReference(p.now.program):
		return fmt.Errorf("%s: %w: it holds %v", p.agentPin.path, ErrForeignProgram, p.now.program)
	case isForeign || !p.fromAgent && p.takenBack() && !p.isReference(p.now.program):
		return fmt.Errorf("%s: %w: %v", p.program, ErrForeignProgram, p.now.program)
	case !p.fromAgent && p.takenBack() && !o.opts.Takeover:
		return fmt.Errorf("%s: %w: %v", p.program, ErrTakenBack, p.now.program)
	case p.oursRuns() && p.saved.id == 0 && !o.opts.Takeover:
		return nil // our own, and running: it is replaced
	}
	if theirs, ok := p.beside(p.now); ok {
		return fmt.Errorf("%s of %s: %w: %v would run beside it", p.program, o.opts.Cgroup, ErrAgentRuns, theirs.program)
	}
	if !p.now.live() {
		return p.blocked
	}
	return nil
}

// checkTakeover makes sure that there is something to take over, if that is asked for, and that its programs keep
// what sockets remember in the very maps that this datapath reads and writes.
func (o *observation) checkTakeover(places []*place) error {
	found := slices.ContainsFunc(o.hooks, func(h hookState) bool { return h.saved.id != 0 || o.choose(&h).fromAgent })
	if o.opts.Takeover && !found {
		return fmt.Errorf("%w: no link in %s, no program on %s", ErrNothingToTakeOver, o.opts.TakeoverLinks, o.opts.Cgroup)
	}
	takes, shares := false, false
	for _, p := range places {
		if !p.remembers() || !p.now.live() || !p.fromAgent && !p.takenBack() {
			continue
		}
		takes = true
		uses, err := o.sharesHash(p.now.program)
		if err != nil {
			return err
		}
		shares = shares || uses
	}
	if takes && !shares {
		return fmt.Errorf("%w: none of its programs uses %s or %s", ErrForeignProgram,
			o.opts.pinPath(mapReverse4), o.opts.pinPath(mapReverse6))
	}
	return nil
}

// sharesHash tells whether a program uses the hash that is pinned. Returns an error wrapping
// [ErrForeignProgram] if it uses another.
func (o *observation) sharesHash(p program) (uses bool, err error) {
	for _, id := range p.maps {
		name, isHash := o.hashes[id]
		switch {
		case !isHash:
		case o.mapNamed(name).pinned == id:
			uses = true
		default:
			return false, fmt.Errorf("%w: program %d uses another map than %s", ErrForeignProgram, p.id, o.opts.pinPath(name))
		}
	}
	return uses, nil
}

func (o *observation) mapNamed(name string) *mapState {
	return &o.maps[slices.IndexFunc(o.maps, func(s mapState) bool { return s.name == name })]
}

// planDirsAndMaps makes the directories and maps that are missing. The map that holds the mode is pinned only
// when it is set: a load that is killed before leaves no mode, and the next one decides anew.
func (o *observation) planDirsAndMaps(f *Features) []step {
	steps := slices.Concat(o.planDir(o.opts.PinsDir), o.planDir(o.opts.MapsDir), o.planDir(o.opts.linksDir()))
	for _, s := range o.maps {
		switch id := s.lost(); {
		case id != 0:
			steps = append(steps, adoptMap{s.name, s.pin, id})
		case s.pinned == 0 && needsMap(s.name, f):
			steps = append(steps, createMap{s.name, s.pin})
		}
	}
	return steps
}

func (o *observation) planDir(dir string) []step {
	if _, ok := o.dirs[dir]; ok {
		return nil
	}
	return []step{makeDir{dir}}
}

// planModes are the steps before the first hook is attached, and those after the last one.
//
// A takeover begins in a mode that reads what the other agent's writers write, and in which sockets know
// when the hash has something newer: dual, also where it is one of many. The mode that is asked for follows
// when the last writer is replaced.
func (o *observation) planModes(places []*place) (before, after []step, err error) {
	takes := slices.ContainsFunc(places, (*place).takesOver)
	mode := o.mode
	if !o.loaded {
		if mode, err = o.firstMode(takes); err != nil {
			return nil, nil, err
		}
		before = []step{switchMode{to: mode}, pinMap{mapConfig}}
	} else if takes && (mode == ModeStorage || mode == ModeMirror) {
		mode = ModeDual
		before = []step{switchMode{to: mode}}
	}
	if to := o.opts.Mode; to != nil {
		after, err = o.planMode(mode, *to, o.opts.Force)
	}
	return before, after, err
}

// firstMode is the mode where nothing has run yet.
func (o *observation) firstMode(takes bool) (Mode, error) {
	hash := o.checkHashEmpty()
	mode := ModeStorage
	switch {
	case o.opts.Mode != nil:
		mode = *o.opts.Mode
		if (mode == ModeStorage || mode == ModeMirror) && hash != nil && !o.opts.Force {
			return 0, hash
		}
	case hash != nil:
		mode = ModeDual
	}
	if takes && mode != ModeLegacy {
		mode = ModeDual
	}
	return mode, nil
}

// planMode switches the mode. Without force it refuses to stop reading a state that sockets rely on, or to read
// again a hash that nobody has kept up to date.
func (o *observation) planMode(from, to Mode, force bool) ([]step, error) {
	if from == to {
		return nil, nil
	}
	if force {
		return []step{switchMode{to: to}}, nil
	}
	if err := o.checkMode(from, to); err != nil {
		return nil, err
	}
	return []step{switchMode{to: to, check: true}}, nil
}

func (o *observation) checkMode(from, to Mode) error {
	// In mode storage the hooks do not look after the hash, so what it holds is outdated.
	// In mode mirror both are to say the same.
	if to == ModeStorage || from == ModeStorage || to == ModeMirror {
		if err := o.checkHashEmpty(); err != nil {
			return err
		}
	}
	if needsHeld(to) && o.held > 0 {
		return fmt.Errorf("%w: tuples on sockets only: %d", ErrUnsafeMode, o.held)
	}
	return nil
}

// needsHeld tells whether what sockets hold decides if a mode may be switched to.
func needsHeld(to Mode) bool { return to == ModeLegacy || to == ModeMirror }

// checkHashEmpty returns an error wrapping [ErrUnsafeMode] if the hash holds entries.
func (o *observation) checkHashEmpty() error {
	for _, name := range []string{mapReverse4, mapReverse6} {
		if o.mapNamed(name).has {
			return fmt.Errorf("%w: %s has entries", ErrUnsafeMode, name)
		}
	}
	return nil
}

// planKeep pins what is needed to give a place back, before it is taken over: its program, and the agent's
// link, which stays then if the agent removes its pin. A link of ours whose pin was removed is pinned again.
func (o *observation) planKeep(p *place) []step {
	var steps []step
	if p.takesOver() && (p.fromAgent || p.now.id != p.saved.id) {
		steps = append(steps, saveProgram{p.hook, p.now.id})
	}
	if p.leaving.live() {
		steps = append(steps, detach{hook: p.hook, program: p.leaving.id, path: p.pin.path})
	}
	notPinned := p.now.link != 0 && p.now.link != p.pin.id
	if p.leaving.link != 0 || notPinned {
		steps = append(steps, o.planClearPin(p.hookState)...)
	}
	if notPinned {
		steps = append(steps, pinLink{p.hook, p.now.link})
	}
	return steps
}

// planClearPin frees the name of a pin for a new link. A link to a removed cgroup is moved away and kept; any
// other is dead.
func (o *observation) planClearPin(h *hookState) []step {
	switch {
	case h.pin.id == 0:
		return nil
	case h.pin.removed:
		aside := filepath.Join(o.opts.removedDir(), fmt.Sprintf("%s_%d", h.program, h.pin.cgroup))
		return append(o.planDir(o.opts.removedDir()), rename{o.opts.linkPath(h.hook), aside})
	}
	return []step{unpin{path: o.opts.linkPath(h.hook), kind: aLink}}
}

// planHook puts our program into its place, or into a new link.
func (o *observation) planHook(p *place) []step {
	if p.now.live() {
		action := Change{ActionReplace, p.program}
		if p.takesOver() {
			action = Change{ActionTakeOver, p.reference}
		}
		return []step{exchange{hook: p.hook, linked: p.now.link != 0, old: p.now.id, ours: true, said: action}}
	}
	var steps []step
	if p.saved.id != 0 { // what an earlier load has left of a place that is gone
		steps = append(steps, unpin{path: o.opts.formerPath(p.hook), kind: aProgram})
	}
	steps = append(steps, o.planClearPin(p.hookState)...)
	return append(steps, attach{p.hook})
}

// planState keeps the features, who loads, and where the agent has its links.
func (o *observation) planState(f Features, places []*place) []step {
	to := keptState{Features: f, LoadedBy: o.opts.Version}
	if o.kept != nil {
		to.AgentLinks = o.kept.AgentLinks
	}
	// Also of what an earlier load has taken over, without getting as far as this.
	taken := func(p *place) bool { return (p.takesOver() || p.saved.id != 0) && p.agentPin.id != 0 }
	if i := slices.IndexFunc(places, taken); i >= 0 {
		to.AgentLinks = filepath.Dir(places[i].agentPin.path)
	}
	if o.kept != nil && *o.kept == to {
		return nil
	}
	return []step{setFeatures{pin: o.opts.pinPath(mapFeatures), before: o.kept, to: to}}
}

// planUnwanted frees the hooks that only an earlier load wanted. They have nothing to do with what
// sockets remember, so that the mode does not matter to who gets them back.
func (o *observation) planUnwanted(f *Features) []step {
	var first, then []step
	for i := range o.hooks {
		h := &o.hooks[i]
		if h.isWanted(f) {
			continue
		}
		back := h.saved.id != 0 && h.ours() && !besideReference(*h)
		if back {
			first = append(first, giveBack(h))
		}
		then = append(then, o.planFree(h, back)...)
	}
	for _, l := range o.removed {
		if !l.removed { // its last socket is closed
			then = append(then, unpin{path: l.path, kind: aLink, said: true})
		}
	}
	if len(o.removed) > 0 && !slices.ContainsFunc(o.removed, func(l linkState) bool { return l.removed }) {
		then = append(then, removeDir{o.opts.removedDir()})
	}
	return append(first, then...)
}

// giveBack puts the former program back in the place of ours.
func giveBack(h *hookState) step {
	own := h.own()
	return exchange{hook: h.hook, linked: own.link != 0, old: own.id, said: Change{ActionHandBack, h.reference}}
}

// planFree takes our program off a hook, if it was not given back, and removes the pins. What another agent
// has put there is left alone.
//
// The pin of the link goes first, so that a link whose former program is not known never looks like one of
// our own.
func (o *observation) planFree(h *hookState, back bool) []step {
	var steps []step
	own := h.own()
	if !back && !h.takenBack() && (h.ours() || h.pin.id != 0 && !h.pin.live) {
		d := detach{hook: h.hook, program: own.id, path: h.pin.path}
		if h.orphan.live() {
			d.id = own.link
		}
		// A link that is not ours to make, or to a cgroup that is gone.
		d.final = h.pin.removed || d.id != 0 || h.saved.id != 0 && own.link != 0
		steps = append(steps, d)
	}
	foreign, isForeign := h.foreign()
	if h.pin.id != 0 && !isForeign {
		steps = append(steps, unpin{path: o.opts.linkPath(h.hook), kind: aLink})
	}
	if h.saved.id != 0 {
		steps = append(steps, unpin{path: o.opts.formerPath(h.hook), kind: aProgram})
	}
	switch {
	case isForeign:
		steps = append(steps, leave{fmt.Sprintf("%s, which holds %v", h.pin.path, foreign.program)})
	case !back && h.takenBack():
		steps = append(steps, leave{h.reference})
	}
	return steps
}

// planUnload detaches the hooks; with purge it removes this datapath's maps, too.
func planUnload(o *observation, purge bool) ([]step, error) {
	if o.takenOver() && !o.opts.Force {
		return nil, fmt.Errorf("%s: %w", o.opts.PinsDir, ErrTakenOver)
	}
	return o.planRemove(nil, purge)
}

// takenOver tells whether hooks were taken over from another agent.
func (o *observation) takenOver() bool {
	return slices.ContainsFunc(o.hooks, func(h hookState) bool { return h.saved.id != 0 })
}

// planRemove detaches what is not back already, and removes the pins. Writers go first, the reverse of
// attaching: what is written is read to the last.
func (o *observation) planRemove(back map[string]bool, purge bool) ([]step, error) {
	var steps []step
	removed := make(map[string]bool) // paths
	remove := func(kind pinKind, path string) {
		steps = append(steps, unpin{path: path, kind: kind, said: true})
		removed[path] = true
	}
	for i := len(o.hooks) - 1; i >= 0; i-- {
		h := &o.hooks[i]
		if h.pin.err != nil {
			return nil, h.pin.err
		}
		steps = append(steps, o.planFree(h, back[h.program])...)
		_, isForeign := h.foreign()
		removed[o.opts.linkPath(h.hook)], removed[o.opts.formerPath(h.hook)] = !isForeign, true
	}
	for _, l := range o.removed {
		if l.removed {
			steps = append(steps, detach{path: l.path, final: true})
		}
		remove(aLink, l.path)
	}
	removeDirs := func(dirs ...string) {
		for _, dir := range dirs {
			names, exists := o.dirs[dir]
			switch {
			case !exists:
			case slices.ContainsFunc(names, func(name string) bool { return !removed[filepath.Join(dir, name)] }):
				steps = append(steps, leave{dir}) // somebody else's files are in it
			default:
				steps = append(steps, removeDir{dir})
				removed[dir] = true
			}
		}
	}
	removeDirs(o.opts.removedDir(), o.opts.linksDir())
	if purge {
		for _, name := range o.dirs[o.opts.PinsDir] {
			path := filepath.Join(o.opts.PinsDir, name)
			switch s := slices.IndexFunc(o.maps, func(s mapState) bool { return s.name == name }); {
			case s >= 0 && o.maps[s].foreign, name == mapFeatures && o.keptErr != nil:
				steps = append(steps, leave{path})
			case s >= 0 && o.maps[s].pinned != 0, name == mapFeatures:
				remove(aMap, path)
			case name == mapFeatures+next:
				steps = append(steps, unpin{path: path, kind: aMap})
				removed[path] = true
			}
		}
	}
	// After the maps: as long as it is there, a hand-back that was cut short can go on. What such a call has
	// left in it goes, too.
	for _, name := range o.dirs[o.opts.formerDir()] {
		if path := filepath.Join(o.opts.formerDir(), name); strings.HasSuffix(name, next) {
			steps = append(steps, unpin{path: path, kind: aProgram})
			removed[path] = true
		}
	}
	removeDirs(o.opts.formerDir())
	if purge {
		removeDirs(o.opts.PinsDir)
	}
	return steps, nil
}

// planHandBack puts the programs back that were taken over, and removes this datapath with all its pins.
func planHandBack(o *observation) ([]step, error) {
	if _, ok := o.dirs[o.opts.formerDir()]; !ok {
		if names, ok := o.dirs[o.opts.PinsDir]; ok && len(names) == 0 { // a call was cut short before its last step
			return o.planRemove(nil, true)
		}
		return nil, fmt.Errorf("%s: %w", o.opts.PinsDir, ErrNotTakenOver)
	}
	var ours []*hookState
	for i := len(o.hooks) - 1; i >= 0; i-- { // writers first, the reverse of taking over
		h := &o.hooks[i]
		if h.pin.err != nil {
			return nil, h.pin.err
		}
		// Where the other agent is there again beside ours, ours just goes, with the rest.
		if h.saved.id != 0 && h.ours() && !besideReference(*h) {
			ours = append(ours, h)
		}
	}
	var steps []step
	if !o.opts.Force && o.takenOver() { // else a call was cut short that had come so far
		if err := o.checkHandBack(ours); err != nil {
			return nil, err
		}
		if len(ours) > 0 && (o.mode == ModeDual || o.mode == ModeMirror) {
			steps = append(steps, fillHash{verify: true})
		}
	}
	// In mode legacy the agent's programs and ours do the same, so that any mixture of them works.
	if o.loaded && o.mode != ModeLegacy && len(ours) > 0 {
		steps = append(steps, switchMode{to: ModeLegacy})
	}
	back := make(map[string]bool)
	for _, h := range ours {
		steps = append(steps, giveBack(h))
		back[h.program] = true
	}
	rest, err := o.planRemove(back, true)
	return append(steps, rest...), err
}

// checkHandBack makes sure that the programs which come back, or are back, find in the hash what sockets
// remember: nobody else will remember it. Returns an error wrapping [ErrHashIncomplete]. In mode
// legacy the hash is all there is. In the modes mirror and dual what it lacks is put back into it. While
// programs of ours run in mode storage, nobody looks after the hash: what it has is right only if sockets say so.
func (o *observation) checkHandBack(ours []*hookState) error {
	for i := range o.maps {
		s := &o.maps[i]
		if s.err != nil && needsMap(s.name, &Features{}) {
			return s.err
		}
		if s.pinned == 0 && ownMap(s.name) {
			return fmt.Errorf("%s: %w", s.pin, ErrNotLoaded)
		}
	}
	for _, h := range ours {
		if _, err := o.sharesHash(h.saved); err != nil {
			return fmt.Errorf("%w: %w", ErrHashIncomplete, err)
		}
	}
	running := len(ours) > 0
	if o.mode == ModeLegacy {
		return nil
	}
	if running && o.mode == ModeStorage && o.checkHashEmpty() != nil {
		return fmt.Errorf("%w: what it has is outdated in mode storage", ErrHashIncomplete)
	}
	return o.lacking.check(running, running && o.mode != ModeStorage)
}

// needsMap tells whether the programs use a map, with these features.
func needsMap(name string, f *Features) bool {
	return f.HealthCheck || name != sock.SockMapCiliumLb4Health && name != sock.SockMapCiliumLb6Health
}
