// SPDX-License-Identifier: Apache-2.0

package loader

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
	ActionAdopt   = "adopt"   // a map that programs use: pin it again
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

func (o Options) changed(c Change) {
	if o.OnChange != nil {
		o.OnChange(c)
	}
}

// changesOf is what steps change.
func changesOf(steps []step) []Change {
	var all []Change
	for _, s := range steps {
		all = append(all, s.changes()...)
	}
	return all
}
