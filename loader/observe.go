// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/attached"
	"github.com/revsk/revsk/internal/cgroup2"
	"github.com/revsk/revsk/internal/maplayout"
)

// A call observes first, then plans (plan.go), then applies the plan (apply.go). What is observed are values: no
// file descriptor is kept, and a plan looks at nothing else.

// observation is what there is of a datapath, and around it. Making one changes nothing.
type observation struct {
	opts  Options
	specs map[string]*ebpf.MapSpec // of the maps as they are compiled
	hooks []hookState              // in the order of hooks
	maps  []mapState               // sorted by name
	// loaded tells that there is a mode: a load has come as far as that.
	loaded bool
	mode   Mode
	// kept are the features, and what else is kept with the datapath; nil: nothing is.
	kept    *keptState
	keptErr error // why what is there cannot be it
	// modeFor is how long the mode has been what it is.
	modeFor time.Duration
	// changing: another process is changing the datapath. namespaced: its cgroup is the root of a cgroup
	// namespace, and not of the hierarchy.
	changing, namespaced bool
	// dirs are the directories of the pins that exist, each with the names in it.
	dirs map[string][]string
	// removed are the links to cgroups that were removed, which are kept aside.
	removed []linkState
	// unsafe is why the directories of the pins cannot be trusted; nil: they can.
	unsafe error
	// elsewhere is where the maps of programs of ours on the cgroup are pinned, which are not this datapath's.
	elsewhere string

	// running are the features of our programs where none are kept, because the pin was removed; nil: they
	// are not known.
	running *Features
	// agent is what was found out about another agent's programs that are to be taken over; nil: nobody has
	// looked.
	agent *agentFacts
	// others are the pinned maps of layouts that the programs do not know.
	others []otherMap
	// hashes are those maps of the programs that look like the hash of a family, by the name which that has.
	hashes map[ebpf.MapID]string
	// links are all links to cgroups; nil: not looked for.
	links []linkState

	// held is how many tuples sockets hold, and lacking how many of them the hash lacks. They are asked only for
	// plans that depend on them (lookAtSockets).
	held    int
	lacking difference
}

// hookState is what there is on one hook of the cgroup.
type hookState struct {
	hook
	// pin is the link that is pinned under the name of the hook, saved what a takeover has replaced.
	pin   linkState
	saved program
	// on are the programs of the cgroup, in the order in which they run, and around are those of load
	// balancers for sockets on cgroups above and below that share a map with this datapath.
	on, around []attachment
	// orphan is a program of this datapath's whose link is not pinned where it should be, cannot be opened,
	// or never was.
	orphan attachment
	// agentPin is the link in the agent's directory.
	agentPin linkState
	// blocked is why no link could be attached; nil: one could.
	blocked error
}

// linkState is a link to a cgroup. At most one of live and removed is set; without either it is dead:
// detached, by an unload that was cut short, or with its cgroup.
type linkState struct {
	path    string // where it is pinned
	id      link.ID
	hook    ebpf.AttachType
	program ebpf.ProgramID
	cgroup  uint64
	live    bool  // on the cgroup of the datapath
	removed bool  // on a cgroup that was removed, and whose sockets live on
	hidden  bool  // the file system is read-only: the kernel does not say what is pinned there
	err     error // why it is not what its name says
}

// program is a program that is attached, or was.
type program struct {
	id     ebpf.ProgramID // 0: none
	name   string         // as the kernel keeps it; empty: not looked at
	tag    string
	maps   []ebpf.MapID
	loaded time.Duration // since boot
}

func (p program) String() string { return fmt.Sprintf("%s (program %d)", p.name, p.id) }

// attachment is a program that is attached to a cgroup.
type attachment struct {
	program
	cgroup string
	link   link.ID // 0: without one
	flags  uint32
}

func (a attachment) String() string { return fmt.Sprintf("%v on %s", a.program, a.cgroup) }

// live tells whether there is a program at all.
func (a attachment) live() bool { return a.id != 0 }

// mapState is a map that the programs use.
type mapState struct {
	name, pin string
	pinned    ebpf.MapID // 0: nothing is pinned there
	foreign   bool       // what is pinned there is no map of this type
	err       error      // why what is pinned there cannot be used
	has       bool       // entries
	frozen    bool       // nobody can write to it any more
	used      []mapUse
	done      bool // of the layout before: no socket has a value in it any more
	// entries and size tell how full it is; 0: they are not known.
	entries, size int
}

// mapUse is a map that attached programs use for what a pin is for.
type mapUse struct {
	id  ebpf.MapID
	has bool // entries
	own bool // by a program of this datapath
}

// isOurs tells our programs from those of another agent. That they are those of these pins, and not
// of another datapath, is told by where they are.
func (p program) isOurs() bool { return strings.HasPrefix(p.name, "revsk_") }

// isReference tells whether a program is called as the reference calls its own of this hook, as far
// as the kernel keeps names.
func (h hook) isReference(p program) bool {
	return p.name == h.reference || p.name == kept(h.reference)
}

// own is the program where this datapath is attached: one of ours, or one of another agent that has taken the
// hook back. If there is none, the result is not live.
func (h *hookState) own() attachment {
	if h.pin.live {
		return h.byID(h.pin.program, h.pin.id)
	}
	if h.orphan.live() {
		return h.orphan
	}
	if h.pin.id != 0 || h.saved.id == 0 {
		return attachment{}
	}
	// Attached without a link.
	for _, is := range []func(program) bool{program.isOurs, func(p program) bool { return p.id == h.saved.id }, h.isReference} {
		if i := slices.IndexFunc(h.on, func(a attachment) bool { return a.link == 0 && is(a.program) }); i >= 0 {
			return h.on[i]
		}
	}
	return attachment{}
}

// byID is what is known of the program in a link.
func (h *hookState) byID(id ebpf.ProgramID, l link.ID) attachment {
	for _, a := range h.on {
		if a.id == id {
			a.link = l
			return a
		}
	}
	return attachment{program: program{id: id}, link: l}
}

// agent is where another agent has its program: the link that is pinned in its directory, or else one that is
// pinned elsewhere or nowhere, or without a link.
func (h *hookState) agent() attachment {
	if h.agentPin.live {
		if there := h.byID(h.agentPin.program, h.agentPin.id); !there.isOurs() {
			return there
		}
	}
	for _, linked := range []bool{true, false} {
		for _, a := range h.on {
			if h.isReference(a.program) && (a.link != 0) == linked {
				return a
			}
		}
	}
	return attachment{}
}

// theirs is the reference's program: the one on the hook, or the one that a takeover has replaced, even if
// that was interrupted.
func (h *hookState) theirs() program {
	if h.saved.id != 0 {
		return h.saved
	}
	if p := h.agent().program; h.isReference(p) {
		return p
	}
	return program{}
}

// ours tells whether a program of ours is in the place of this datapath.
func (h *hookState) ours() bool {
	own := h.own()
	return own.live() && (own.isOurs() || own.name == "" && h.saved.id == 0)
}

// takenBack tells whether another agent has put a program of its own back there.
func (h *hookState) takenBack() bool {
	own := h.own()
	return own.live() && !h.ours() && own.id != h.saved.id
}

// foreign is a program in the pinned link that nobody of those is who have to do with it: anybody who may open
// the link can have put it there. It is not ours to remove, and goes with the last pin of the link.
func (h *hookState) foreign() (attachment, bool) {
	own := h.own()
	return own, h.pin.live && h.takenBack() && own.name != "" && !h.isReference(own.program)
}

// misplaced tells whether the pinned link holds a program of ours that is another hook's: it does nothing there.
func (h *hookState) misplaced() bool {
	own := h.own()
	return h.ours() && own.name != "" && own.name != h.program && own.name != kept(h.program)
}

// beside is a second program of the reference on the hook. Both would run, and each would see the addresses
// that the other has translated.
func (h *hookState) beside(place attachment) (attachment, bool) {
	for _, a := range h.on {
		if a.id != place.id && h.isReference(a.program) {
			return a, true
		}
	}
	return attachment{}, false
}

// others are further programs of load balancers for sockets that run on the hook, on the cgroup or around it.
func (h *hookState) others() []attachment {
	var all []attachment
	own := h.own()
	for _, a := range h.on {
		if a.id != own.id && h.conflicts(a) {
			all = append(all, a)
		}
	}
	return append(all, h.around...)
}

// conflicts tells whether a program does the same as ours, so that only one of them may run. What another
// agent has on a hook that no feature of ours needs is about binding, and stays.
func (h *hookState) conflicts(a attachment) bool {
	return (h.isReference(a.program) || a.isOurs()) && (h.remembers() || h.ours())
}

// observe looks at everything there is but for the sockets.
func observe(opts Options) (*observation, error) {
	o, err := observePins(opts)
	if err != nil {
		return nil, err
	}
	for _, look := range []func() error{o.lookAtCgroup, o.findOrphans, o.lookAtMaps, o.lookAtOlderMaps, o.findOtherMaps, o.lookAtOwnFeatures, o.lookAround} {
		if err := look(); err != nil {
			return nil, err
		}
	}
	o.namespaced = isNamespaceRoot(opts.Cgroup)
	o.changing, err = isLockedByOthers(opts.PinsDir)
	return o, err
}

// observeWhatOneMay is observe, but finds only what is pinned if the process lacks CAP_SYS_ADMIN or the
// cgroup has been removed.
func observeWhatOneMay(opts Options) (*observation, error) {
	o, err := observe(opts)
	if errors.Is(err, ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return observePins(opts)
	}
	return o, err
}

// observePins looks at the pins, and at the programs of the cgroup only where there is no pin to tell.
func observePins(opts Options) (*observation, error) {
	specs, err := opts.compiledMaps()
	if err != nil {
		return nil, err
	}
	o := &observation{opts: opts, specs: specs, dirs: make(map[string][]string), hashes: make(map[ebpf.MapID]string)}
	for _, dir := range []string{opts.PinsDir, opts.MapsDir} {
		if err := checkDirs(dir); errors.Is(err, ErrUnsafeDir) {
			o.unsafe = err
		} else if err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{opts.PinsDir, opts.MapsDir, opts.linksDir(), opts.formerDir(), opts.removedDir()} {
		files, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		o.dirs[dir] = []string{}
		for _, file := range files {
			o.dirs[dir] = append(o.dirs[dir], file.Name())
		}
	}
	for _, name := range o.dirs[opts.removedDir()] {
		l, err := readLink(opts, filepath.Join(opts.removedDir(), name), nil)
		if err != nil {
			return nil, err
		}
		o.removed = append(o.removed, l)
	}
	o.kept, o.keptErr = readKept(opts)
	if o.keptErr != nil && !errors.Is(o.keptErr, ErrNotAPin) && !errors.Is(o.keptErr, ErrLayout) {
		return nil, o.keptErr
	}
	for _, h := range hooks {
		hs, err := hookState{hook: h}, error(nil)
		if hs.pin, err = readLink(opts, opts.linkPath(h), &h); err != nil {
			return nil, err
		}
		saved, err := openPinnedProgram(opts.formerPath(h))
		if err == nil {
			hs.saved, err = aboutProgram(saved)
			saved.Close()
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if hs.saved.id != 0 && (hs.pin.id == 0 || hs.pin.live) { // else the attached program is ours
			if err := o.lookAtHook(&hs); err != nil {
				return nil, err
			}
		}
		o.hooks = append(o.hooks, hs)
	}
	return o, o.lookAtMapPins()
}

// lookAtCgroup looks at the programs of the cgroup, and where another agent has its own.
func (o *observation) lookAtCgroup() error {
	dirs := []string{o.opts.TakeoverLinks}
	if o.kept != nil {
		dirs = append(dirs, o.kept.AgentLinks)
	}
	for i := range o.hooks {
		h := &o.hooks[i]
		if h.on == nil {
			if err := o.lookAtHook(h); err != nil {
				return err
			}
		}
		for _, dir := range dirs {
			if dir == "" || h.agentPin.id != 0 {
				continue
			}
			var err error
			if h.agentPin, err = readLink(o.opts, filepath.Join(dir, h.reference), &h.hook); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAtHook finds the programs on a hook of the cgroup.
func (o *observation) lookAtHook(h *hookState) (err error) {
	if h.on, err = h.programs(o.opts.Cgroup); err != nil {
		return err
	}
	for i := range h.on {
		a := &h.on[i]
		if h.pin.live && h.pin.program == a.id {
			a.link = h.pin.id
		} else if a.flags&unix.BPF_F_ALLOW_MULTI != 0 { // beside programs without this flag there are no links
			if a.link, err = o.linkOf(h.hook, a.id); err != nil {
				return err
			}
		}
	}
	return nil
}

// programs are those that are attached to the hook of a cgroup, without their links.
func (h hook) programs(cgroup string) ([]attachment, error) {
	found, err := attached.To(cgroup, h.attach)
	if err != nil {
		return nil, describe(err)
	}
	var all []attachment
	for _, id := range found.IDs {
		p, err := describeProgram(id)
		if err != nil {
			return nil, err
		}
		if p.id != 0 { // else it is gone meanwhile
			all = append(all, attachment{program: p, cgroup: cgroup, flags: found.Flags})
		}
	}
	return all, nil
}

// linkOf is the link to the cgroup that holds a program; 0 if none does.
func (o *observation) linkOf(h hook, id ebpf.ProgramID) (link.ID, error) {
	if o.links == nil {
		var err error
		if o.links, err = cgroupLinks(); err != nil {
			return 0, err
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(o.opts.Cgroup, &st); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", o.opts.Cgroup, err)
	}
	for _, l := range o.links {
		if l.program == id && l.hook == h.attach && l.cgroup == st.Ino {
			return l.id, nil
		}
	}
	return 0, nil
}

// lookAtMapPins looks at what is pinned.
func (o *observation) lookAtMapPins() error {
	for _, name := range mapNames(o.specs) {
		s := mapState{name: name, pin: o.opts.pinPath(name)}
		if err := o.lookAtMapPin(&s); err != nil {
			return err
		}
		if s.pinned == 0 && s.err == nil && isOlder(name, o.specs) {
			continue // nothing is in that layout
		}
		o.maps = append(o.maps, s)
	}
	return nil
}

func (o *observation) lookAtMapPin(s *mapState) error {
	spec := o.specs[s.name]
	m, err := openPinnedMap(s.pin)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, ErrNotAPin):
		s.foreign, s.err = true, err
		return nil
	case err != nil:
		return err
	}
	defer m.Close()
	s.foreign = m.Type() != spec.Type
	if s.pinned, err = mapID(m); err != nil {
		return err
	}
	if err := maplayout.Check(m, spec, ErrLayout); err != nil {
		s.err = fmt.Errorf("%s: %w", s.pin, err)
		return nil
	}
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("reading about %s: %w", s.pin, present(err))
	}
	s.frozen = info.Frozen()
	switch s.name {
	case mapReverse4, mapReverse6:
		s.has, err = hasEntries(m)
	case mapConfig:
		if err = o.lookAtMode(m); err == nil {
			o.modeFor, err = age(s.pin)
		}
	}
	return err
}

func (o *observation) lookAtMode(m *ebpf.Map) error {
	cfg, err := readConfig(m)
	o.loaded, o.mode = err == nil, Mode(cfg.Mode)
	return err
}

func hasEntries(m *ebpf.Map) (bool, error) {
	key, err := m.NextKeyBytes(nil)
	if err != nil {
		return false, fmt.Errorf("reading %v: %w", m, err)
	}
	return key != nil, nil
}

// age is how long ago a pin was made, or its modification time set.
func age(pin string) (time.Duration, error) {
	info, err := os.Lstat(pin)
	if err != nil {
		return 0, err
	}
	return time.Since(info.ModTime()), nil
}

// findOrphans looks for programs of this datapath whose pins were removed. They use the map of the mode that
// is pinned, or that a program in a pinned link uses. If there is no such map, any map of the mode counts
// that is pinned nowhere.
func (o *observation) findOrphans() error {
	config := o.mapNamed(mapConfig).pinned
	type candidate struct {
		h      *hookState
		a      attachment
		config ebpf.MapID
	}
	var candidates, aboutBinding []candidate
	for i := range o.hooks {
		h := &o.hooks[i]
		for _, a := range h.on {
			if !a.isOurs() {
				continue
			}
			id, err := o.configOf(a.program)
			switch own := h.own(); {
			case err != nil:
				return err
			case id == 0:
				aboutBinding = append(aboutBinding, candidate{h, a, 0})
			case a.id == own.id && config == 0:
				config = id
			case a.id != own.id && !h.pin.live:
				candidates = append(candidates, candidate{h, a, id})
			}
		}
	}
	for _, c := range candidates {
		if config == 0 {
			var err error
			if o.elsewhere, err = findPinOfMap(o.opts.PinsDir, c.config); err != nil || o.elsewhere != "" {
				return err
			}
			config = c.config
		}
		if c.config == config {
			c.h.orphan = c.a
		}
	}
	// Programs about binding do not know the mode: they belong to the others.
	if !slices.ContainsFunc(o.hooks, func(h hookState) bool { return h.ours() }) {
		return nil
	}
	for _, c := range aboutBinding {
		if !c.h.own().live() && !c.h.remembers() {
			c.h.orphan = c.a
		}
	}
	return nil
}

// configOf is the map of the mode that a program uses; 0: none.
func (o *observation) configOf(p program) (ebpf.MapID, error) {
	for _, id := range p.maps {
		m, err := openMapID(id)
		if err != nil {
			return 0, err
		}
		if m == nil {
			continue
		}
		same, err := isMap(m, o.specs[mapConfig])
		m.Close()
		if err != nil || same {
			return id, err
		}
	}
	return 0, nil
}

// findPinOfMap looks for a map in the BPF file system of a directory. It returns the empty string if it is
// not there.
func findPinOfMap(dir string, id ebpf.MapID) (found string, err error) {
	for {
		if !exists(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		top, err := isMountRoot(dir)
		if err != nil {
			return "", err
		}
		if top {
			break
		}
		dir = filepath.Dir(dir)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		m, err := openPinnedMap(path)
		if err != nil {
			return nil // a program, a link, or removed meanwhile
		}
		defer m.Close()
		if pinned, err := mapID(m); err == nil && pinned == id {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// lookAtMaps finds out which maps the programs use: those of this datapath, and the reference's.
func (o *observation) lookAtMaps() (err error) {
	own := make(map[ebpf.MapID]bool) // whether a program of ours uses it
	var ids []ebpf.MapID
	note := func(p program, ours bool) {
		for _, id := range p.maps {
			if _, ok := own[id]; !ok {
				ids = append(ids, id)
			}
			own[id] = own[id] || ours
		}
	}
	for i := range o.hooks {
		h := &o.hooks[i]
		place := h.own()
		if place.live() && place.name == "" { // not on the cgroup any more
			if place.program, err = describeProgram(place.id); err != nil {
				return err
			}
		}
		note(place.program, h.ours())
		note(h.saved, false)
		for _, a := range h.on {
			if h.isReference(a.program) || a.isOurs() {
				note(a.program, false)
			}
		}
	}
	for _, id := range ids {
		if err := o.noteMap(id, own[id]); err != nil {
			return err
		}
	}
	return nil
}

func (o *observation) noteMap(id ebpf.MapID, own bool) error {
	m, err := openMapID(id)
	if m == nil {
		return err
	}
	defer m.Close()
	for _, name := range []string{mapReverse4, mapReverse6} {
		// By its type and sizes alone, which tell it from all other maps of the reference.
		if maplayout.Check(m, o.specs[name], ErrLayout) == nil {
			o.hashes[id] = name
		}
	}
	for i := range o.maps {
		s := &o.maps[i]
		same, err := isMap(m, o.specs[s.name])
		if err != nil {
			return err
		}
		if !same {
			continue
		}
		use := mapUse{id: id, own: own}
		if s.pinned == 0 && !ownMap(s.name) {
			if use.has, err = hasEntries(m); err != nil {
				return err
			}
		}
		if s.name == mapConfig && s.pinned == 0 && own {
			// It will be pinned again.
			if err := o.lookAtMode(m); err != nil {
				return err
			}
		}
		s.used = append(s.used, use)
		slices.SortFunc(s.used, func(a, b mapUse) int { return int(a.id) - int(b.id) })
	}
	return nil
}

// lookAround looks for what is on the cgroups above and below: programs that share a map with this datapath,
// since each would see the addresses that the other has translated, and those beside which no link can be
// attached.
func (o *observation) lookAround() error {
	above, below, err := cgroupsAround(o.opts.Cgroup)
	if err != nil {
		return err
	}
	for i := range o.hooks {
		h := &o.hooks[i]
		over, err := h.programsOf(above)
		if err != nil {
			return err
		}
		under, err := h.programsOf(below)
		if err != nil {
			return err
		}
		for _, a := range slices.Concat(over, under) {
			if h.conflicts(a) && slices.ContainsFunc(a.maps, o.isPinned) {
				h.around = append(h.around, a)
			}
		}
		h.blocked = h.blockedBy(o.opts.Cgroup, slices.Concat(h.on, over))
	}
	return nil
}

// programsOf are programs of several cgroups, but those that were removed meanwhile.
func (h hook) programsOf(cgroups []string) (all []attachment, err error) {
	for _, dir := range cgroups {
		on, err := h.programs(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
			continue // or it is no cgroup
		}
		if err != nil {
			return nil, err
		}
		all = append(all, on...)
	}
	return all, nil
}

func (o *observation) isPinned(id ebpf.MapID) bool {
	return slices.ContainsFunc(o.maps, func(s mapState) bool { return s.pinned == id })
}

// blockedBy returns why no link may be attached to a cgroup; nil: one may. The programs are those on the
// cgroup and above it, the nearest first. The kernel refuses a link beside programs without BPF_F_ALLOW_MULTI
// on the same cgroup, and below a program that is attached without any flag: the error wraps [ErrExclusive].
// Below a program with BPF_F_ALLOW_OVERRIDE it accepts the link, but then stops running that program, perhaps
// a policy, for the sockets of our cgroup: the error wraps [ErrOverrides].
func (h hook) blockedBy(cgroup string, onPath []attachment) error {
	if len(onPath) == 0 || onPath[0].flags&unix.BPF_F_ALLOW_MULTI != 0 {
		return nil
	}
	first := onPath[0]
	if first.cgroup == cgroup || first.flags&unix.BPF_F_ALLOW_OVERRIDE == 0 {
		return fmt.Errorf("%s of %s: %w", h.program, first.cgroup, ErrExclusive)
	}
	return fmt.Errorf("%s: %w: %v", h.program, ErrOverrides, first)
}

// cgroupsAround are the cgroups above one, the nearest first, and below it.
func cgroupsAround(cgroup string) (above, below []string, err error) {
	dir, err := filepath.Abs(cgroup)
	if err != nil {
		return nil, nil, err
	}
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		magic, err := fsMagic(up)
		if err != nil {
			return nil, nil, err
		}
		if magic != unix.CGROUP2_SUPER_MAGIC {
			break
		}
		above = append(above, up)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && path != dir {
			below = append(below, path)
		}
		return err
	})
	return above, below, err
}

// describeProgram finds out what a program is. It returns the zero program if it is gone.
func describeProgram(id ebpf.ProgramID) (program, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return program{}, nil
	}
	if err != nil {
		return program{}, describe(fmt.Errorf("opening program %d: %w", id, err))
	}
	defer prog.Close()
	return aboutProgram(prog)
}

func aboutProgram(prog *ebpf.Program) (program, error) {
	info, err := prog.Info()
	if err != nil {
		return program{}, fmt.Errorf("reading about a program: %w", present(err))
	}
	p := program{name: info.Name, tag: info.Tag}
	p.id, _ = info.ID()
	p.maps, _ = info.MapIDs()
	p.loaded, _ = info.LoadTime()
	return p, nil
}

// AgentRuns tells whether a reference agent's programs are on the cgroup, in whose place [Options.Takeover]
// would put ours. Returns an error wrapping [ErrPermission] or [ErrNoCgroup2].
func AgentRuns(opts Options) (bool, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return false, err
	}
	for _, h := range hooks {
		hs := hookState{hook: h}
		if hs.on, err = h.programs(opts.Cgroup); err != nil {
			return false, err
		}
		if _, runs := hs.beside(attachment{}); runs {
			return true, nil
		}
	}
	return false, nil
}

// isNamespaceRoot tells whether a cgroup is the root of a cgroup namespace, and not of the hierarchy.
func isNamespaceRoot(cgroup string) bool {
	usual, err := FindCgroup2()
	return err == nil && usual == cgroup && !cgroup2.IsRoot(usual)
}
