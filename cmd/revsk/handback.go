// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/revsk/revsk/loader"
)

// runHandBack is revsk unload --hand-back.
func runHandBack(ctx context.Context, env *env, opts loader.Options, wait time.Duration) error {
	var done changes
	err := waitForLock(ctx, wait, func() error {
		done = nil
		opts.OnChange = done.add
		return loader.HandBack(ctx, opts)
	})
	if err != nil {
		return err
	}
	if printed, err := done.print(env, opts.DryRun); printed {
		return err
	}
	done.printLeft(env)
	_, err = fmt.Fprintf(env.Stdout, "handed back %s of %s, removed %s\n",
		count(len(done.objects(loader.ActionHandBack)), "hook", "hooks"), opts.Cgroup, opts.PinsDir)
	return err
}
