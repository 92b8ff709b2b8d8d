// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/inspect"
)

func newGCCommand(env *env) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what closed sockets have left in the overflow map",
		Long: `Removes entries of the overflow map whose socket no longer exists, and says how
many. While the hooks are attached a socket takes its entries with it when it is
closed; this is for sockets that were closed while they were not. Before Linux
5.17 a socket with a very long chain also leaves some.

It is safe beside running traffic: what a live socket remembers is not touched.`,
		Example: `  revsk gc --dry-run
  revsk gc`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGC(cmd.Context(), env, dryRun) },
	}
	addDryRunFlag(cmd.Flags(), &dryRun)
	return cmd
}

func runGC(ctx context.Context, env *env, dryRun bool) error {
	dp, _, err := env.open()
	if err != nil {
		return err
	}
	defer dp.Close()
	if err := unlimitMemory(); err != nil {
		return err
	}
	removed, err := inspect.OverflowSweep(ctx, inspectMaps(dp), inspect.SweepOptions{DryRun: dryRun})
	if err != nil {
		if removed > 0 {
			return exitError{exitPartly, fmt.Errorf("%w (%d entries were removed before)", err, removed)}
		}
		return err
	}
	if env.json() {
		return env.printJSON(struct {
			Schema  string `json:"schema"`
			DryRun  bool   `json:"dry_run"`
			Removed int    `json:"removed"`
		}{"revsk/gc/v1", dryRun, removed})
	}
	does := "removed"
	if dryRun {
		does = "would remove"
	} else if env.quiet {
		return nil
	}
	_, err = fmt.Fprintf(env.Stdout, "%s %s\n", does, count(removed, "entry of a closed socket", "entries of closed sockets"))
	return err
}
