// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// findSeats finds, before anything is changed, where each wanted hook's program is to go: into the seat
// that it has, into another agent's if [Options.Takeover] asks for it, or into a new link.
func (dp *Datapath) findSeats(undo *undoer) (seats []*seat, err error) {
	found := false
	var takes, shares bool
	for _, h := range hooks {
		s, err := dp.chooseSeat(h)
		if err != nil {
			return nil, err
		}
		undo.hold(s)
		found = found || s.foreign || s.taken()
		if h.isWanted(dp.opts.Features) && h.remembers() && s.live() && (s.foreign || s.takenBack()) {
			takes = true
			uses, err := dp.checkSharesHash(s.now.id)
			if err != nil {
				return nil, err
			}
			shares = shares || uses
		}
		switch {
		case h.isWanted(dp.opts.Features):
			seats = append(seats, s)
		case s.foreign:
			dp.opts.changed(ActionLeave, h.reference)
		}
	}
	if dp.opts.Takeover && !found {
		return nil, fmt.Errorf("%w: no link in %s, no program on %s", ErrNothingToTakeOver, dp.opts.TakeoverLinks, dp.opts.Cgroup)
	}
	if takes && !shares {
		return nil, fmt.Errorf("%w: none of its programs uses %s or %s", ErrForeignProgram,
			dp.opts.pinPath(mapReverse4), dp.opts.pinPath(mapReverse6))
	}
	return seats, nil
}

func (dp *Datapath) chooseSeat(h hook) (*seat, error) {
	s, err := findSeat(dp.opts, h)
	if err != nil {
		return nil, err
	}
	if !s.live() && dp.opts.Takeover {
		foreign, err := findForeign(dp.opts, h)
		if err != nil {
			s.Close()
			return nil, err
		}
		if foreign.live() {
			// Kept already by a call that was cut short, or by one for a seat that is gone.
			foreign.former, foreign.formerly, s.former = s.former, s.formerly, nil
			s.Close()
			s = foreign
		}
	}
	if h.isWanted(dp.opts.Features) {
		err = dp.checkSeat(s)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// findForeign finds the seat of the reference's program on a hook: the link that is pinned in the
// directory, or else a link that is pinned elsewhere or nowhere, or an attachment without a link. It is not live if there is none.
func findForeign(opts Options, h hook) (_ *seat, err error) {
	s := &seat{hook: h, foreign: true}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	path := filepath.Join(opts.TakeoverLinks, h.reference)
	l, live, err := openLink(opts, h, path)
	if err != nil {
		return nil, err
	}
	if !live {
		if l != nil {
			l.Close()
		}
		if l, err = findLink(opts, h); err != nil {
			return nil, err
		}
		if l == nil {
			return s, s.findAttachment(opts, h.isReference)
		}
	}
	s.link = l
	if err := s.readLink(); err != nil {
		return nil, err
	}
	if !h.isReference(s.now) {
		return nil, fmt.Errorf("%s: %w: it holds %v", path, ErrForeignProgram, s.now)
	}
	return s, nil
}

// checkSeat makes sure that our program may go to a seat, and that no program of the reference runs
// beside it.
func (dp *Datapath) checkSeat(s *seat) error {
	if s.takenBack() && !s.foreign {
		if !dp.opts.Takeover {
			return fmt.Errorf("%s: %w: %v", s.program, ErrTakenBack, s.now)
		}
		if !s.isReference(s.now) {
			return fmt.Errorf("%s: %w: %v", s.program, ErrForeignProgram, s.now)
		}
	}
	if s.live() && !s.taken() && !s.foreign && !dp.opts.Takeover {
		return nil // our own, and running
	}
	beside, err := referenceBeside(dp.opts, s)
	if err != nil {
		return err
	}
	if beside.id != 0 {
		return fmt.Errorf("%s of %s: %w: %v would run beside it", s.program, dp.opts.Cgroup, ErrAgentRuns, beside)
	}
	return nil
}

// referenceBeside returns a program of the reference's that is on the hook besides the one in the seat.
// Both would run: each would see the addresses that the other has translated.
func referenceBeside(opts Options, s *seat) (occupant, error) {
	found, err := queryOwn(opts, s.hook)
	if err != nil {
		return occupant{}, err
	}
	for _, id := range found.IDs {
		if id == s.now.id {
			continue
		}
		o, err := describeProgram(id)
		if err != nil {
			return occupant{}, err
		}
		if s.isReference(o) {
			return o, nil
		}
	}
	return occupant{}, nil
}

// AgentRuns tells whether a reference agent's programs are on the cgroup, in whose place [Options.Takeover] would put
// ours. Returns an error wrapping [ErrPermission] or [ErrNoCgroup2].
func AgentRuns(opts Options) (bool, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return false, err
	}
	for _, h := range hooks {
		found, err := referenceBeside(opts, &seat{hook: h})
		if err != nil || found.id != 0 {
			return found.id != 0, err
		}
	}
	return false, nil
}

// checkSharesHash makes sure that another agent's program keeps what sockets remember in the very maps
// that this datapath reads and writes, and tells whether it uses one of them at all. Returns an error
// wrapping [ErrForeignProgram].
func (dp *Datapath) checkSharesHash(id ebpf.ProgramID) (uses bool, err error) {
	used, err := mapsOf(id)
	if err != nil {
		return false, err
	}
	for _, name := range []string{mapReverse4, mapReverse6} {
		ours := dp.maps[name]
		if ours == nil {
			continue
		}
		ourID, err := mapID(ours)
		if err != nil {
			return false, err
		}
		for _, id := range used {
			if id == ourID {
				uses = true
				continue
			}
			same, err := looksLike(id, ours)
			if err != nil {
				return false, err
			}
			if same {
				return false, fmt.Errorf("%w: program %d uses another map than %s", ErrForeignProgram, id, dp.opts.pinPath(name))
			}
		}
	}
	return uses, nil
}

// looksLike tells whether a map has the type and sizes of another, which tells the hash of a family
// from all other maps of the reference.
func looksLike(id ebpf.MapID, other *ebpf.Map) (bool, error) {
	m, err := openMapID(id)
	if m == nil {
		return false, err
	}
	defer m.Close()
	return m.Type() == other.Type() && m.KeySize() == other.KeySize() && m.ValueSize() == other.ValueSize(), nil
}

// prepareTakeover does what has to be done before the first program is attached: the mode becomes one
// that reads what the other agent's writers write, and what is needed to hand back is pinned.
func (dp *Datapath) prepareTakeover(seats []*seat, fresh bool, undo *undoer) error {
	takeover := slices.ContainsFunc(seats, func(s *seat) bool { return s.live() && !s.ours() })
	if takeover {
		if err := makeDir(dp.opts, dp.opts.formerDir(), undo); err != nil {
			return err
		}
	}
	if fresh {
		if err := dp.setFirstMode(takeover); err != nil {
			return err
		}
		// A load that is killed before leaves no mode, and the next one decides anew.
		if err := pinMap(dp.opts, dp.maps[mapConfig], mapConfig, undo); err != nil {
			return err
		}
	} else if takeover {
		if err := dp.returnToDual(undo); err != nil {
			return err
		}
	}
	for _, s := range seats {
		if !s.foreign && !s.takenBack() {
			continue
		}
		if err := keep(dp.opts, s, undo); err != nil {
			return err
		}
	}
	return nil
}

// returnToDual switches a datapath that has been there before to mode dual: the agent's programs have written what
// is in the hash only.
func (dp *Datapath) returnToDual(undo *undoer) error {
	mode, err := dp.Mode()
	if err != nil || mode != ModeStorage && mode != ModeMirror {
		return err
	}
	if err := dp.opts.step("return to mode dual"); err != nil {
		return err
	}
	if err := dp.restoreMode(undo); err != nil {
		return err
	}
	return dp.writeMode(ModeDual)
}
