// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/revsk/revsk/loader"
)

// changes collects what the loader changes, or would change.
type changes []loader.Change

func (c *changes) add(change loader.Change) { *c = append(*c, change) }

func (c changes) has(action string) bool {
	for _, change := range c {
		if change.Action == action {
			return true
		}
	}
	return false
}

// printPlan says what a dry run would have done.
func (c changes) printPlan(env *env) error {
	var b strings.Builder
	for _, change := range c {
		if change.Action == loader.ActionSwitch {
			change.Object = "to mode " + change.Object
		}
		fmt.Fprintf(&b, "would %s %s\n", change.Action, change.Object)
	}
	if len(c) == 0 {
		b.WriteString("nothing to do\n")
	}
	_, err := fmt.Fprint(env.Stdout, b.String())
	return err
}

// changesDocument is the JSON output of the commands that change the datapath.
type changesDocument struct {
	Schema  string  `json:"schema"` // revsk/changes/v1
	DryRun  bool    `json:"dry_run"`
	Changes changes `json:"changes"`
	// Status is what runs afterwards; not after a dry run, nor after unload.
	Status *statusDocument `json:"status,omitempty"`
}

func (c changes) document(dryRun bool, status *statusDocument) changesDocument {
	if c == nil {
		c = changes{}
	}
	return changesDocument{"revsk/changes/v1", dryRun, c, status}
}
