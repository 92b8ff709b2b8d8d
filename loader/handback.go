// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// HandBack puts the programs back in place that a Load with [Options.Takeover] has replaced, each
// in one atomic step, and removes this datapath with all its pins: the maps, too, since nobody keeps up
// to date any more what sockets remember. The load balancer's maps stay.
//
// The programs that come back know the hash only. So what it lacks of what live sockets have is put back into it,
// and the mode becomes legacy first. Where the hash lacks something nevertheless, or was not kept in mode storage, that is
// refused with an error wrapping [ErrHashIncomplete], unless [Options.Force] is set. A hook on which the other agent has meanwhile put a program of its own is left
// as it is, and reported as [ActionLeave].
//
// A failure before the last program is back undoes everything. After that, and after the death of the
// process at any point, another call goes on. Returns an error wrapping [ErrNotLoaded],
// [ErrNotTakenOver], [ErrHashIncomplete], [ErrTakenBack], [ErrPartlyDone] or [ErrLocked].
func HandBack(ctx context.Context, opts Options) error {
	return removing(ctx, opts, handBack(ctx))
}

// PlanHandBack says what [HandBack] would change. It fails as that would.
func PlanHandBack(ctx context.Context, opts Options) (changes []Change, err error) {
	err = removing(ctx, opts.planning(&changes), handBack(ctx))
	return changes, err
}

func handBack(ctx context.Context) func(Options) error {
	return func(opts Options) error {
		if !exists(opts.formerDir()) {
			return fmt.Errorf("%s: %w", opts.PinsDir, ErrNotTakenOver)
		}
		back, err := handBackAll(ctx, opts)
		if err != nil {
			return err
		}
		// From here on nothing is undone: all programs are back.
		if err := remove(opts, back, true); err != nil {
			return fmt.Errorf("handed back, but removing the pins: %w: %w", ErrPartlyDone, err)
		}
		return nil
	}
}

// handBackAll puts back all that is ours, or nothing. It returns the hooks where it did, by our names.
func handBackAll(ctx context.Context, opts Options) (back map[string]bool, err error) {
	undo := new(undoer)
	defer undo.finish(&err)
	var ours []*seat
	// Writers first, the reverse of taking over.
	for _, h := range slices.Backward(hooks) {
		s, err := findSeat(opts, h)
		if err != nil {
			return nil, err
		}
		undo.hold(s)
		if !s.taken() || !s.ours() {
			continue
		}
		beside, err := referenceBeside(opts, s)
		if err != nil {
			return nil, err
		}
		// Where the other agent is there again, ours just goes, with the rest.
		if beside.id == 0 {
			ours = append(ours, s)
		}
	}
	if err := leaveToHash(ctx, opts, ours, undo); err != nil {
		return nil, err
	}
	back = make(map[string]bool)
	for _, s := range ours {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.handBack(opts, undo); err != nil {
			return nil, err
		}
		back[s.program] = true
	}
	return back, nil
}

// leaveToHash makes sure that the programs which come back, or are back, find in the hash what sockets
// remember: nobody else will remember it. Then it switches to mode legacy: from then on their
// programs and ours do the same, in whatever mixture.
func leaveToHash(ctx context.Context, opts Options, seats []*seat, undo *undoer) error {
	dp, err := Open(opts)
	if err != nil {
		if opts.Force {
			return nil
		}
		return err
	}
	undo.hold(dp)
	if !opts.Force {
		if err := dp.checkHandBack(ctx, len(seats) > 0); err != nil {
			return err
		}
		for _, s := range seats {
			if _, err := dp.checkSharesHash(s.formerly.id); err != nil {
				return fmt.Errorf("%w: %w", ErrHashIncomplete, err)
			}
		}
	}
	mode, err := dp.Mode()
	if err != nil || mode == ModeLegacy || len(seats) == 0 {
		return err
	}
	if err := opts.step("switch to mode legacy"); err != nil {
		return err
	}
	if err := dp.restoreMode(undo); err != nil {
		return err
	}
	return dp.writeMode(ModeLegacy)
}

// checkHandBack returns an error wrapping ErrHashIncomplete if live sockets hold what the hash lacks. In mode
// legacy the hash is all there is. While programs of ours run in mode storage, nobody looks after the
// hash: what it has is right only if sockets say so.
func (dp *Datapath) checkHandBack(ctx context.Context, running bool) error {
	mode, err := dp.Mode()
	if err != nil || mode == ModeLegacy {
		return err
	}
	if mode != ModeStorage && running {
		if err := dp.refill(ctx); err != nil {
			return err
		}
	}
	if mode == ModeStorage && running {
		if err := dp.checkLegacyEmpty(); errors.Is(err, ErrUnsafeMode) {
			return fmt.Errorf("%w: what it has is outdated in mode storage", ErrHashIncomplete)
		} else if err != nil {
			return err
		}
	}
	return dp.checkHash(ctx, running)
}

// handBack puts the former program back, and registers how to undo that.
func (s *seat) handBack(opts Options, undo *undoer) error {
	if err := opts.step("hand back " + s.reference); err != nil {
		return err
	}
	ours, err := ebpf.NewProgramFromID(s.now.id)
	if err != nil {
		return describe(fmt.Errorf("opening the program of %s: %w", s.program, err))
	}
	undo.hold(ours)
	return s.exchange(opts, ours, s.former, Change{ActionHandBack, s.reference}, undo)
}
