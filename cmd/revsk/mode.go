// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
)

var modeWords = []string{
	loader.ModeStorage.String(), loader.ModeMirror.String(), loader.ModeDual.String(), loader.ModeLegacy.String(),
}

func newModeCommand(env *env) *cobra.Command {
	var force, dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "mode [storage|mirror|dual|legacy]",
		Short: "Show the mode, or switch to another",
		Long: `The mode says where the hooks keep the services of sockets:

  storage  on the socket; for normal running
  mirror   on the socket and in the legacy maps; for nodes where another agent destroys sockets by the legacy maps, or runs its own programs again when it restarts
  dual     on the socket and in the legacy maps, which may have entries that no socket holds yet; for upgrades
  legacy   in the legacy maps only

A switch takes effect at once, without a load. When the command returns, no hook
works in the old mode any more. Without --force it refuses a switch by which live
sockets lose their service: to storage while the legacy maps have entries, and to
legacy while sockets hold tuples.`,
		Example: `  revsk mode
  revsk mode dual
  revsk mode storage --dry-run`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: modeWords,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := env.options()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return showMode(env, opts)
			}
			mode, err := parseMode(args[0])
			if err != nil {
				return err
			}
			opts.Wait = wait
			if dryRun {
				return printPlan(env, func() (changes, error) { return planMode(cmd.Context(), opts, *mode, force) })
			}
			return switchMode(cmd.Context(), env, opts, *mode, force)
		},
	}
	addForceFlag(cmd.Flags(), &force)
	addDryRunFlag(cmd.Flags(), &dryRun)
	addWaitFlag(cmd.Flags(), &wait)
	return cmd
}

func showMode(env *env, opts loader.Options) error {
	dp, err := loader.Open(opts)
	if err != nil {
		return err
	}
	defer dp.Close()
	mode, err := dp.Mode()
	if err != nil {
		return err
	}
	if env.json() {
		return env.printJSON(api.Mode{Header: newHeader(api.ModeSchema), Mode: mode})
	}
	_, err = fmt.Fprintln(env.Stdout, mode)
	return err
}

func switchMode(ctx context.Context, env *env, opts loader.Options, mode loader.Mode, force bool) error {
	var done changes
	opts.OnChange = done.add
	dp, err := loader.OpenLocked(ctx, opts)
	if err != nil {
		return err
	}
	defer dp.Close()
	defer dp.Unlock()
	before, err := dp.Mode()
	if err != nil {
		return err
	}
	if err := dp.SetMode(mode, force); err != nil {
		return err
	}
	if printed, err := done.print(env); printed {
		return err
	}
	if len(done) == 0 {
		_, err = fmt.Fprintf(env.Stdout, "mode is %v already\n", mode)
	} else {
		_, err = fmt.Fprintf(env.Stdout, "switched from mode %v to %v\n", before, mode)
	}
	return err
}

func planMode(ctx context.Context, opts loader.Options, mode loader.Mode, force bool) (changes, error) {
	dp, err := loader.Open(opts)
	if err != nil {
		return nil, err
	}
	defer dp.Close()
	return dp.PlanMode(ctx, mode, force)
}

func addModeFlag(cmd *cobra.Command, flags *pflag.FlagSet, mode *string) {
	addChoice(cmd, flags, mode, modeWords, "mode", "", "mode to switch to")
}

// parseMode returns nil for the empty string.
func parseMode(s string) (*loader.Mode, error) {
	if s == "" {
		return nil, nil
	}
	mode, err := loader.ParseMode(s)
	if err != nil {
		return nil, usageError(err)
	}
	return &mode, nil
}
