// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// seat is where the program of a hook sits: in a pinned link, or attached without one. It is our own,
// or another agent's that was taken over, or one that is to be.
type seat struct {
	hook
	link cgroupLink // nil: without a link, or there is no seat yet
	now  occupant   // who sits there; of an own link only the id

	// former is what another agent had there, and what is kept to hand the seat back; nil: the seat
	// is our own, or not kept yet.
	former   *ebpf.Program
	formerly occupant
	// foreign: found on behalf of a takeover, and not kept yet.
	foreign bool
}

// findSeat finds the seat of a hook by our pins. It is not live if there is none, or its link is dead.
func findSeat(opts Options, h hook) (_ *seat, err error) {
	s := &seat{hook: h}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.former, err = openFormer(opts, h); err != nil {
		return nil, err
	}
	if s.former != nil {
		if s.formerly, err = occupantOf(s.former); err != nil {
			return nil, err
		}
	}
	var live bool
	if s.link, live, err = openLink(opts, h, opts.linkPath(h)); err != nil {
		return nil, err
	}
	switch {
	case live:
		err = s.readLink()
	case s.link == nil && s.taken():
		err = s.findAttachment(opts, isOurs, func(o occupant) bool { return o.id == s.formerly.id }, h.isReference)
	}
	return s, err
}

// readLink finds out who sits in the link.
func (s *seat) readLink() error {
	info, err := s.link.Info()
	if err != nil {
		return fmt.Errorf("link of %s: %w", s.program, err)
	}
	s.now.id = info.Program
	if s.taken() || s.foreign {
		s.now, err = describeProgram(info.Program)
	}
	return err
}

// findAttachment looks for a program that is attached without a link: the first that fits the first
// condition, else the second, and so on.
func (s *seat) findAttachment(opts Options, conditions ...func(occupant) bool) error {
	found, err := queryOwn(opts, s.hook)
	if err != nil || len(found.IDs) == 0 {
		return err
	}
	var linked map[ebpf.ProgramID]bool
	// Beside programs without this flag there are no links.
	if found.Flags&unix.BPF_F_ALLOW_MULTI != 0 {
		if linked, err = heldByLinks(opts, s.hook); err != nil {
			return err
		}
	}
	var candidates []occupant
	for _, id := range found.IDs {
		o, err := describeProgram(id)
		if err != nil {
			return err
		}
		if !linked[id] && o.id != 0 {
			candidates = append(candidates, o)
		}
	}
	for _, fits := range conditions {
		if i := slices.IndexFunc(candidates, fits); i >= 0 {
			s.now = candidates[i]
			return nil
		}
	}
	return nil
}

// isOurs tells our programs from those of another agent. That they are those of these pins, and not
// of another datapath, follows from the seat, which was taken over.
func isOurs(o occupant) bool { return strings.HasPrefix(o.name, "revsk_") }

// isReference tells whether a program is called as the reference calls its own of this hook, as far
// as the kernel keeps names.
func (h hook) isReference(o occupant) bool {
	return o.name == h.reference || o.name == kept(h.reference)
}

func (s *seat) live() bool  { return s.now.id != 0 }
func (s *seat) taken() bool { return s.former != nil }

// ours: one of our programs sits there.
func (s *seat) ours() bool { return s.live() && (!s.taken() && !s.foreign || isOurs(s.now)) }

// takenBack: the other agent has meanwhile put a program of its own there.
func (s *seat) takenBack() bool {
	return s.taken() && s.live() && !s.ours() && s.now.id != s.formerly.id
}

// Close releases the file descriptors.
func (s *seat) Close() error {
	if s.link != nil {
		s.link.Close()
	}
	if s.former != nil {
		s.former.Close()
	}
	return nil
}

// put replaces who sits there by our program, and registers how to undo that.
func (s *seat) put(opts Options, prog *ebpf.Program, undo *undoer) error {
	// Held open until the call is over: the exchange drops the last reference to it.
	old, err := ebpf.NewProgramFromID(s.now.id)
	if err != nil {
		return describe(fmt.Errorf("opening the program that %s replaces: %w", s.program, err))
	}
	undo.hold(old)
	change := Change{ActionReplace, s.program}
	if !s.ours() {
		change = Change{ActionTakeOver, s.reference}
	}
	return s.exchange(opts, old, prog, change, undo)
}

// exchange puts next in the place of old in one atomic step, if old still sits there, and registers
// how to undo that. Returns an error wrapping [ErrTakenBack] if it does not.
func (s *seat) exchange(opts Options, old, next *ebpf.Program, change Change, undo *undoer) error {
	if !opts.dryRun {
		if err := s.swap(opts, old, next); err != nil {
			return fmt.Errorf("replacing %s: %w", s.program, err)
		}
		undo.add(func() error { return s.swap(opts, next, old) })
	}
	opts.changed(change.Action, change.Object)
	opts.Logger.Debug("replaced", "program", s.program, "link", s.link != nil)
	return nil
}

func (s *seat) swap(opts Options, old, next *ebpf.Program) error {
	if s.link != nil {
		err := s.link.UpdateArgs(link.RawLinkUpdateOptions{New: next, Old: old, Flags: unix.BPF_F_REPLACE})
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: %w", ErrTakenBack, err)
		}
		return err
	}
	oldInfo, err := occupantOf(old)
	if err != nil {
		return err
	}
	found, err := queryOwn(opts, s.hook)
	if err != nil {
		return err
	}
	if !slices.Contains(found.IDs, oldInfo.id) {
		return fmt.Errorf("%w: %v is not attached any more", ErrTakenBack, oldInfo)
	}
	cgroup, err := os.Open(opts.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	args := link.RawAttachProgramOptions{
		Target:  int(cgroup.Fd()),
		Program: next,
		Attach:  s.attach,
		// The kernel insists on the flags of what is there.
		Flags: found.Flags,
	}
	if found.Flags&unix.BPF_F_ALLOW_MULTI != 0 {
		args.Anchor = link.ReplaceProgram(old)
	} else {
		// Here the kernel replaces whatever is there, and only its newer versions know what
		// revision that was (0: any).
		args.ExpectedRevision = found.Revision
	}
	err = link.RawAttachProgram(args)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return fmt.Errorf("%w: %w", ErrTakenBack, err)
	}
	return describe(err)
}

// detach takes our program off the hook at once (removing the last pin would do so some time later)
// and removes the pins. What another agent has put there is left alone.
func (s *seat) detach(opts Options) error {
	action := Change{ActionDetach, s.program}
	switch {
	case s.takenBack():
		action = Change{ActionLeave, s.reference}
	case s.live() && !s.ours(), s.link == nil && !s.live():
		return opts.unpinSeat(s)
	case opts.dryRun:
	case s.link != nil:
		if err := s.link.Detach(); err != nil {
			return fmt.Errorf("detaching %s: %w", s.program, err)
		}
	default:
		if err := s.detachAttachment(opts); err != nil {
			return fmt.Errorf("detaching %s: %w", s.program, err)
		}
	}
	if err := opts.unpinSeat(s); err != nil {
		return err
	}
	opts.changed(action.Action, action.Object)
	opts.Logger.Debug("detached", "program", s.program)
	return nil
}

func (s *seat) detachAttachment(opts Options) error {
	prog, err := ebpf.NewProgramFromID(s.now.id)
	if err != nil {
		return describe(err)
	}
	defer prog.Close()
	cgroup, err := os.Open(opts.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	return link.RawDetachProgram(link.RawDetachProgramOptions{
		Target: int(cgroup.Fd()), Program: prog, Attach: s.attach,
	})
}

// unpinSeat removes the pins of a seat: that of the link first, so that a link whose former program is
// not known never looks like one of our own.
func (o Options) unpinSeat(s *seat) error {
	if o.dryRun {
		return nil
	}
	for _, path := range []string{o.linkPath(s.hook), o.formerPath(s.hook)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
