// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

func newLoadCommand(env *env) *cobra.Command {
	var (
		mode, links             string
		force, dryRun, takeover bool
		legacy                  uint32
		wait                    time.Duration
		features                = loader.DefaultFeatures()
		reset                   bool
	)
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Start the datapath, or replace a running version of it",
		Long: `Opens the pinned service, backend and legacy maps with the size they have, creates
those that are missing, loads the programs and attaches them to the cgroup. What
already runs is replaced hook by hook, each in one atomic step; running it again
is harmless. If anything fails, everything is as it was before.

Without --mode a running datapath keeps its mode. A first load chooses storage,
or dual where the legacy maps have entries.

Where another agent (Cilium) runs on the cgroup, load refuses to run beside it.
With --takeover its programs are replaced by revsk's, each in one atomic step:
those in its links, wherever it has pinned them, and those that it has attached
without a link. They are kept, and revsk unload --hand-back puts them back. Then
what live sockets need is moved onto them, as revsk migrate does, and the mode is
mirror: the hash is kept, too, by which the agent ends sockets, and in which its
programs find them when it restarts. --mode storage gives that up; with --mode
dual nothing is moved yet. Later loads find the hooks again, with or without the
flag; --takeover is needed once more if the agent has started anew and taken its
hooks back.

Sizes count only for maps that do not exist yet. Features are kept: a load changes
those whose flags it is given, and leaves the others as they are. --reset-features
begins with the defaults. One that is on is turned off by --NAME=false.`,
		Example: `  revsk load
  revsk load --dry-run                        # check everything, change nothing
  revsk load --mode dual                      # keep the legacy maps current
  revsk load --cgroup /sys/fs/cgroup/test --nodeport=false
  revsk load --takeover                       # where another agent runs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := env.options()
			if err != nil {
				return err
			}
			if opts.Mode, err = parseMode(mode); err != nil {
				return err
			}
			opts.Force = force
			opts.Wait = wait
			opts.Takeover, opts.TakeoverLinks = takeover, links
			opts.LegacyMaxEntries = legacy
			if reset {
				defaults := loader.DefaultFeatures()
				opts.Features = &defaults
			}
			opts.ChangeFeatures = func(f *loader.Features) { changeFeatures(cmd.Flags(), f) }
			then := migration(&opts)
			if dryRun {
				return printPlan(env, func() (changes, error) { return planLoad(cmd.Context(), opts, then) })
			}
			return runLoad(cmd.Context(), env, opts, then)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	addModeFlag(cmd, flags, &mode)
	addForceFlag(flags, &force)
	addDryRunFlag(flags, &dryRun)
	addWaitFlag(flags, &wait)
	flags.BoolVar(&takeover, "takeover", false, "take over from another agent that runs on the cgroup")
	flags.StringVar(&links, "takeover-links", "", "the same, if its links are pinned in another `directory` than usual")
	flags.Uint32Var(&legacy, "legacy-entries", 0, "`size` of each legacy map, if it has to be created (default 262144)")
	flags.BoolVar(&reset, "reset-features", false, "begin with the default features")
	addFeatureFlags(flags, &features)
	return cmd
}

// migration is what follows on a takeover: nil if nothing does. The load itself ends in mode dual then.
func migration(opts *loader.Options) *migrate.Options {
	takes := opts.Takeover || opts.TakeoverLinks != ""
	if !takes || opts.Mode != nil && (*opts.Mode == loader.ModeDual || *opts.Mode == loader.ModeLegacy) {
		return nil
	}
	to := loader.ModeMirror
	if opts.Mode != nil {
		to = *opts.Mode
	}
	opts.Mode = nil
	return &migrate.Options{To: &to}
}

func planLoad(ctx context.Context, opts loader.Options, then *migrate.Options) (changes, error) {
	all, err := loader.PlanLoad(ctx, opts)
	if err == nil && then != nil {
		all = append(all, loader.Change{Action: loader.ActionSwitch, Object: then.To.String()})
	}
	return all, err
}

func runLoad(ctx context.Context, env *env, opts loader.Options, then *migrate.Options) error {
	var done changes
	opts.OnChange = done.add
	dp, err := loader.Load(ctx, opts)
	if err != nil {
		return err
	}
	defer dp.Close()
	if then != nil {
		progress, stop := env.startProgress()
		then.Loader, then.Progress, then.Logger = opts, progress, env.logger()
		report, err := migrate.Run(ctx, *then)
		stop()
		if report != nil {
			err = interrupted(err, report.Mode)
		}
		if err != nil {
			return exitError{exitPartly, fmt.Errorf("taken over, but migrating: %w", err)}
		}
	}
	status, err := readStatus(opts, dp)
	if err != nil {
		return exitError{exitPartly, fmt.Errorf("loaded, but reading the status: %w", err)}
	}
	switch {
	case env.json():
		return env.printJSON(done.document(false, &status))
	case env.quiet:
		return nil
	}
	done.printLeft(env)
	return status.print(env.Stdout)
}

func addForceFlag(flags *pflag.FlagSet, force *bool) {
	flags.BoolVar(force, "force", false, "switch the mode even if live sockets forget their service address by it")
}

func addDryRunFlag(flags *pflag.FlagSet, dryRun *bool) {
	flags.BoolVar(dryRun, "dry-run", false, "check everything and say what would be done, but change nothing")
}

func addWaitFlag(flags *pflag.FlagSet, wait *time.Duration) {
	flags.DurationVar(wait, "wait", 0, "wait so long for another process that is changing the same datapath")
}
