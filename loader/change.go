// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Change is one thing that a call changes, or would change.
type Change struct {
	// Action is one of the Action constants.
	Action string `json:"action"`
	// Object is the path of a directory or pin, the name of a program, ours or another agent's, or a mode.
	Object string `json:"object"`
}

// The actions of a [Change].
const (
	ActionCreate  = "create"  // a directory, or a map and its pin
	ActionAttach  = "attach"  // a program, and pin its link
	ActionReplace = "replace" // the program of a link
	ActionDetach  = "detach"  // a program, and remove its link's pin
	ActionRemove  = "remove"  // a directory or a map's pin
	ActionSwitch  = "switch"  // to a mode
	ActionSet     = "set"     // features, as NAME=VALUE

	// Of another agent's program, by its name:
	ActionTakeOver = "take over" // replace it by ours, and keep it
	ActionHandBack = "hand back" // put it back in the place of ours
	ActionLeave    = "leave"     // it alone: no feature needs the hook, or the agent has put it there since

	// ActionLeave is also what becomes of a directory with files that are not this datapath's, and of a pin that
	// is not what its name says.
)

func (o Options) changed(action, object string) {
	if o.OnChange != nil {
		o.OnChange(Change{action, object})
	}
}

// dryRunMaxEntries is enough for a map that no program will run with.
const dryRunMaxEntries = 64

// shrink makes a map small that is created for a dry run only.
func shrink(spec *ebpf.MapSpec) {
	switch spec.Type {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		spec.MaxEntries = min(spec.MaxEntries, dryRunMaxEntries)
	}
}

// checkWritable finds out whether dir, which does not exist, could be made.
func checkWritable(dir string) error {
	parent := filepath.Dir(dir)
	for !exists(parent) && parent != "/" {
		parent = filepath.Dir(parent)
	}
	if err := unix.Access(parent, unix.W_OK); err != nil {
		return describe(fmt.Errorf("making %s: %w", dir, &os.PathError{Op: "access", Path: parent, Err: err}))
	}
	return nil
}

// lockExisting is lock; a dry run does without where there is nothing to lock yet.
func (o Options) lockExisting(lock func() (func(), error)) (unlock func(), err error) {
	if o.dryRun && !exists(o.PinsDir) {
		return func() {}, nil
	}
	return lock()
}

// removePin removes a file or directory of the pins. That it does not exist is no error.
func (o Options) removePin(path string) error {
	if !exists(path) {
		return nil
	}
	if !o.dryRun {
		err := os.Remove(path)
		if errors.Is(err, unix.ENOTEMPTY) {
			// Somebody else's files.
			o.changed(ActionLeave, path)
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	o.changed(ActionRemove, path)
	return nil
}
