// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	capabilities "github.com/revsk/revsk/internal/capability"
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
		Long: `Opens the pinned service, backend and legacy maps, whatever their size, and
creates those that are missing. Loads the programs and attaches them to the
cgroup. Programs that already run are replaced one by one, each in one atomic
step. You can run it again at any time. If it fails, everything is as before.

Without --mode a running datapath keeps its mode. A first load chooses storage,
or dual if the legacy maps have entries.

load refuses to run beside another agent (Cilium) on the same cgroup. With
--takeover it replaces the agent's programs, each in one atomic step, whether they
are attached by a link or without. It keeps them, and revsk unload --hand-back puts
them back. It then migrates, as revsk migrate does, and ends in mode mirror. In this
mode the legacy maps have what live sockets hold: the agent destroys sockets by these
maps, and its programs need them when the agent restarts. --mode storage ends in mode
storage, in which the maps are empty. --mode dual does not migrate. Later loads do not
need --takeover, unless the agent has restarted and taken its hooks back.

Sizes apply only to maps that load creates. Features are saved with the datapath:
a load changes those whose flags you give, and keeps the others.
--reset-features starts from the defaults. --NAME=false turns a feature off.`,
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
			opts.Said = saidFeatures(cmd.Flags())
			then := migration(&opts)
			if err := checkMigration(then); err != nil {
				return err
			}
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
	flags.StringVar(&links, "takeover-links", "", "`directory` in which that agent pins its links, if not where Cilium does; implies --takeover")
	flags.Uint32Var(&legacy, "legacy-entries", 0, "`size` of each legacy map that has to be created (default 262144)")
	flags.BoolVar(&reset, "reset-features", false, "start from the default features")
	addFeatureFlags(flags, &features)
	return cmd
}

// migration returns the migration that follows a takeover, or nil if none does. If one follows, the load ends in mode dual.
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

// checkMigration returns an error if the migration after the takeover would fail. Without the migration the node would stay in
// mode dual, so this is checked before anything is taken over.
func checkMigration(then *migrate.Options) error {
	if then == nil {
		return nil
	}
	held, err := capabilities.Held()
	if err == nil && !held.Has(unix.CAP_SYS_PTRACE) {
		err = fmt.Errorf("%w: no CAP_SYS_PTRACE", migrate.ErrProcesses)
	}
	return err
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
	return status.print(env.Stdout, false)
}

func addForceFlag(flags *pflag.FlagSet, force *bool) {
	flags.BoolVar(force, "force", false, "switch the mode even if live sockets lose their service")
}

func addDryRunFlag(flags *pflag.FlagSet, dryRun *bool) {
	flags.BoolVar(dryRun, "dry-run", false, "check everything and print the changes, but make none")
}

func addWaitFlag(flags *pflag.FlagSet, wait *time.Duration) {
	flags.DurationVar(wait, "wait", 0, "how long to wait for another process that is changing the datapath")
}
