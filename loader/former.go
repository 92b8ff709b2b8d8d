// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// The programs that were replaced in a takeover are pinned in this directory, each under the name of
// ours. They are pinned before they are replaced, so that they survive this process at any point; a
// hook is taken over, or about to be, as long as its former program is pinned.
func (o Options) formerDir() string { return filepath.Join(o.PinsDir, "former") }

func (o Options) formerPath(h hook) string { return filepath.Join(o.formerDir(), h.program) }

// openFormer opens what another agent had on the hook; nil if it was not taken over.
func openFormer(opts Options, h hook) (*ebpf.Program, error) {
	path := opts.formerPath(h)
	prog, err := openPinnedProgram(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return prog, err
}

// pinFormer pins a program as a hook's former one, in one atomic step where another is pinned already.
func pinFormer(opts Options, h hook, id ebpf.ProgramID) error {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return describe(fmt.Errorf("opening program %d: %w", id, err))
	}
	defer prog.Close()
	path := opts.formerPath(h)
	next := path + "_next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := prog.Pin(next); err != nil {
		return describe(fmt.Errorf("pinning %s: %w", next, err))
	}
	return os.Rename(next, path)
}

// keep pins what is needed to hand a seat back, before it is taken over.
func keep(opts Options, s *seat, undo *undoer) error {
	if opts.dryRun {
		return nil
	}
	if err := opts.step("keep " + s.reference); err != nil {
		return err
	}
	if err := pinFormer(opts, s.hook, s.now.id); err != nil {
		return err
	}
	if s.taken() {
		undo.add(func() error { return pinFormer(opts, s.hook, s.formerly.id) })
	} else {
		undo.add(func() error { return os.Remove(opts.formerPath(s.hook)) })
	}
	if s.link == nil || !s.foreign {
		return nil
	}
	if err := opts.step("pin the link of " + s.reference); err != nil {
		return err
	}
	path := opts.linkPath(s.hook)
	// A dead one, else there would be a seat.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := pinAgain(s.link, path); err != nil {
		return describe(fmt.Errorf("pinning %s: %w", path, err))
	}
	undo.add(func() error { return os.Remove(path) })
	return nil
}

// removeFormer forgets what another agent had on a hook, and registers how to undo that.
func removeFormer(opts Options, s *seat, undo *undoer) error {
	if !s.taken() {
		return nil
	}
	if err := os.Remove(opts.formerPath(s.hook)); err != nil {
		return err
	}
	undo.add(func() error { return pinFormer(opts, s.hook, s.formerly.id) })
	return nil
}
