// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/loader"
)

func newUnloadCommand(env *env) *cobra.Command {
	var purge, handBack, force, dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "unload",
		Short: "Detach the datapath",
		Long: `Detaches all programs. New connections to a service are no longer translated.
Existing connections go on, but replies show the backend's address until the next
load.

The maps stay pinned: sockets keep what they hold, and the next load uses it.
--purge also removes revsk's own maps. Every live socket then loses its service
address for good, and shows its backend's. --purge does not ask for confirmation.
The service, backend and legacy maps stay in either case.

Hooks that were taken over from another agent (load --takeover) are not detached.
--hand-back gives them back: it puts the agent's former programs back, each in
one atomic step, and removes revsk's own maps and pins. Those programs read the
legacy maps only. So --hand-back is refused if those maps lack what live
sockets hold, for example in mode storage: run revsk rollback first. It leaves
hooks alone on which the agent has attached a new program.`,
		Example: `  revsk unload
  revsk unload --purge --dry-run     # how many sockets would lose a service?
  revsk unload --purge
  revsk unload --hand-back`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := env.options()
			if err != nil {
				return err
			}
			opts.Wait = wait
			opts.Force = force
			ctx := cmd.Context()
			switch {
			case handBack && dryRun:
				return printPlan(env, func() (changes, error) { return loader.PlanHandBack(ctx, opts) })
			case handBack:
				return runHandBack(ctx, env, opts)
			}
			return runUnload(ctx, env, opts, purge, dryRun)
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "also remove revsk's own maps: live sockets lose their service")
	cmd.Flags().BoolVar(&handBack, "hand-back", false, "put back the programs that load --takeover has replaced")
	cmd.Flags().BoolVar(&force, "force", false, "with --hand-back: hand back even if live sockets lose their service; without: also detach hooks that were taken over")
	cmd.MarkFlagsMutuallyExclusive("purge", "hand-back")
	addDryRunFlag(cmd.Flags(), &dryRun)
	addWaitFlag(cmd.Flags(), &wait)
	return cmd
}

func runUnload(ctx context.Context, env *env, opts loader.Options, purge, dryRun bool) error {
	var live int64
	if purge {
		var err error
		if live, err = liveTuples(opts); err != nil {
			return err
		}
	}
	forget := func(does string) {
		if live > 0 && !env.quiet {
			fmt.Fprintf(env.Stderr, "live sockets %s %s: they show those of backends from now on\n",
				does, count(live, "service address", "service addresses"))
		}
	}
	if dryRun {
		return printPlan(env, func() (changes, error) {
			defer forget("would forget")
			return loader.PlanUnload(ctx, opts, purge)
		})
	}
	var done changes
	opts.OnChange = done.add
	if err := loader.Unload(ctx, opts, purge); err != nil {
		return err
	}
	forget("forgot")
	if printed, err := done.print(env); printed {
		return err
	}
	done.printLeft(env)
	var err error
	switch {
	case purge:
		_, err = fmt.Fprintf(env.Stdout, "detached from %s, maps removed from %s\n", opts.Cgroup, opts.PinsDir)
	case !done.has(loader.ActionDetach):
		_, err = fmt.Fprintln(env.Stdout, "nothing was attached")
	default:
		_, err = fmt.Fprintf(env.Stdout, "detached from %s, maps kept in %s\n", opts.Cgroup, opts.PinsDir)
	}
	return err
}

// liveTuples returns how many tuples live sockets hold, or 0 if the maps have the layout of another release: such maps can be
// removed, too.
func liveTuples(opts loader.Options) (int64, error) {
	dp, err := loader.Open(opts)
	if errors.Is(err, loader.ErrNotLoaded) || errors.Is(err, loader.ErrLayout) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer dp.Close()
	counters, err := dp.Counters()
	return counters.Live(), err
}
