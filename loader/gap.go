// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A datapath that was taken over can be handed back if the hash has all that sockets remember: in mode
// legacy, and in mode dual as long as no socket has a tuple from a time without the hash. That there was
// such a time is noted by a directory, which a BPF file system keeps as long as the pins.
func (o Options) gapPath() string { return filepath.Join(o.formerDir(), "hash_has_gaps") }

// noteGap notes that the hash may lack something, if sockets hold tuples.
func (dp *Datapath) noteGap(undo *undoer) error {
	err := dp.checkStorageEmpty()
	if !errors.Is(err, ErrUnsafeMode) {
		return err
	}
	path := dp.opts.gapPath()
	if exists(path) {
		return nil
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	undo.add(func() error { return os.Remove(path) })
	return nil
}

// noteBefore notes that the hash will lack what is stored in this mode, before the mode is switched.
func (o Options) noteBefore(mode Mode) error {
	if mode != ModeStorage || !exists(o.formerDir()) {
		return nil
	}
	return os.MkdirAll(o.gapPath(), 0o700)
}

// noteAfter removes the note when the mode has become legacy, in which the hash is all there is.
func (o Options) noteAfter(mode Mode) error {
	if mode != ModeLegacy {
		return nil
	}
	if err := os.Remove(o.gapPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// restoreMode registers that the mode, and the note, become what they are now.
func (dp *Datapath) restoreMode(undo *undoer) error {
	mode, err := dp.Mode()
	if err != nil || dp.opts.DryRun {
		return err
	}
	path := dp.opts.gapPath()
	gaps := exists(path)
	undo.add(func() error {
		err := dp.putMode(mode)
		switch {
		case gaps && !exists(path):
			err = errors.Join(err, os.Mkdir(path, 0o700))
		case !gaps && exists(path):
			err = errors.Join(err, os.Remove(path))
		}
		return err
	})
	return nil
}

// checkHashComplete returns an error wrapping ErrUnsafeMode if sockets may remember what the hash lacks.
func (dp *Datapath) checkHashComplete() error {
	mode, err := dp.Mode()
	if err != nil || mode == ModeLegacy || mode == ModeDual && !exists(dp.opts.gapPath()) {
		return err
	}
	if err := dp.checkStorageEmpty(); err != nil {
		return fmt.Errorf("handing back to programs that know the hash only: %w", err)
	}
	return nil
}
