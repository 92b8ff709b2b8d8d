// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/revsk/revsk/loader"
)

// runHandBack is revsk unload --hand-back.
func runHandBack(ctx context.Context, env *env, opts loader.Options) error {
	var done changes
	opts.OnChange = done.add
	if err := loader.HandBack(ctx, opts); err != nil {
		return err
	}
	if printed, err := done.print(env); printed {
		return err
	}
	done.printLeft(env)
	_, err := fmt.Fprintf(env.Stdout, "handed back %s of %s, removed %s\n",
		count(len(done.objects(loader.ActionHandBack)), "hook", "hooks"), opts.Cgroup, opts.PinsDir)
	return err
}
