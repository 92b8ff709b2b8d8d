// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
)

// changes collects what the loader changes, or would change.
type changes []loader.Change

func (c *changes) add(change loader.Change) { *c = append(*c, change) }

func (c changes) has(action string) bool { return len(c.objects(action)) > 0 }

// objects returns the objects of one action, in order.
func (c changes) objects(action string) []string {
	var objects []string
	for _, change := range c {
		if change.Action == action {
			objects = append(objects, change.Object)
		}
	}
	return objects
}

// print prints the changes with -o json, and nothing with --quiet. It returns false if the caller has to print its own text.
func (c changes) print(env *env) (bool, error) {
	if env.json() {
		return true, env.printJSON(c.document(false, nil))
	}
	return env.quiet, nil
}

// printLeft says which programs of another agent were left alone.
func (c changes) printLeft(env *env) {
	if left := c.objects(loader.ActionLeave); len(left) > 0 {
		fmt.Fprintf(env.Stderr, "left alone: %s\n", strings.Join(left, ", "))
	}
}

// printPlan prints what a command would do.
func printPlan(env *env, plan func() (changes, error)) error {
	c, err := plan()
	if err != nil {
		return err
	}
	if env.json() {
		return env.printJSON(c.document(true, nil))
	}
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
	_, err = fmt.Fprint(env.Stdout, b.String())
	return err
}

func (c changes) document(dryRun bool, status *statusDocument) api.Changes {
	if c == nil {
		c = changes{}
	}
	doc := api.Changes{Header: newHeader(api.ChangesSchema), DryRun: dryRun, Changes: c}
	if status != nil {
		doc.Status = &status.Status
	}
	return doc
}
