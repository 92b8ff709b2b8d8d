// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

func newMigrateCommand(env *env) *cobra.Command {
	var opts migrate.Options
	engine, to := string(migrate.EngineAuto), ""
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move the entries of the legacy maps onto their sockets",
		Long: `Moves the entries of the legacy maps (the hash) onto their sockets, verifies this,
switches to mode storage, and empties the hash. Applications keep running, and never
see a backend address. The hooks must be attached: run revsk load first, which starts
in mode dual if the hash has entries.

On a node that was taken over from another agent (revsk load --takeover) the mode
at the end is mirror: the hash keeps the entries of live sockets, and the
others are deleted. The agent destroys sockets by the hash, including those that have
only sent to a deleted backend, and its programs need the hash when the agent
restarts. --to storage empties the hash there, too.

--dry-run is an audit. It needs no hooks and works on any node with these maps. It
counts the entries of live sockets and the leaked ones, shows how full the maps
are and which sockets have lost their entry, and names the next command.

The report accounts for every entry. Entries that cannot be moved are listed; the
mode then stays dual, in which the hooks still read them, and the exit code is 3.
After an interruption, run the same command again: it continues.

Engines, which are ways to reach the sockets:

  iter   iterators in the kernel; needs Linux 6.5
  pidfd  the descriptors of all processes, one by one; slower, and does not reach sockets that no process has, such as those in flight in a message
  auto   iter if the kernel has what it needs, else pidfd`,
		Example: `  revsk migrate --dry-run                     # audit: what is leaked?
  revsk migrate
  revsk migrate -o json | jq .counts
  revsk migrate --to mirror                   # and keep the hash current
  revsk migrate --unpin-source                # and unpin the legacy maps`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Engine = migrate.Engine(engine)
			var err error
			if opts.To, err = parseMode(to); err != nil {
				return err
			}
			if dryRun {
				return runPlan(cmd.Context(), env, opts.Engine, opts.To)
			}
			return runMigrate(cmd.Context(), env, opts, wait)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	addChoice(cmd, flags, &engine,
		[]string{string(migrate.EngineAuto), string(migrate.EngineIter), string(migrate.EnginePidfd)}, "engine", "", "how to reach the sockets")
	addChoice(cmd, flags, &to, []string{loader.ModeStorage.String(), loader.ModeMirror.String()}, "to", "",
		"mode at the end (default: mirror on a node that was taken over, else storage)")
	flags.BoolVar(&opts.KeepStale, "keep-stale", false, "keep entries in the hash whose service is gone")
	flags.BoolVar(&opts.UnpinSource, "unpin-source", false, "remove the pins of the legacy maps once they are empty")
	flags.BoolVar(&dryRun, "dry-run", false, "audit: print what would become of every entry, but change nothing")
	addWaitFlag(flags, &wait)
	return cmd
}

// prepare returns the options of the global flags, and shows progress until the caller calls stop.
func (e *env) prepare(opts *loader.Options, progress *func(migrate.Progress)) (stop func(), err error) {
	if err := unlimitMemory(); err != nil {
		return nil, err
	}
	if *opts, err = e.options(); err != nil {
		return nil, err
	}
	*progress, stop = e.startProgress()
	return stop, nil
}

func runPlan(ctx context.Context, env *env, engine migrate.Engine, to *loader.Mode) error {
	opts := migrate.PlanOptions{Engine: engine, To: to, Logger: env.logger()}
	stop, err := env.prepare(&opts.Loader, &opts.Progress)
	if err != nil {
		return err
	}
	plan, err := migrate.MakePlan(ctx, opts)
	stop()
	if errors.Is(err, context.Canceled) {
		return exitError{exitFailed, errors.New("interrupted: nothing was changed")}
	}
	if err != nil {
		return err
	}
	at, err := findSituation(opts.Loader)
	if err != nil {
		return err
	}
	doc := newPlanDocument(plan, at)
	if env.json() {
		return env.printJSON(doc)
	}
	return doc.print(env.Stdout)
}

func runMigrate(ctx context.Context, env *env, opts migrate.Options, wait time.Duration) error {
	opts.Logger = env.logger()
	stop, err := env.prepare(&opts.Loader, &opts.Progress)
	if err != nil {
		return err
	}
	opts.Loader.Wait = wait
	// Most of what is taken stays until the end, so that collecting garbage often gains little.
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	report, err := migrate.Run(ctx, opts)
	stop()
	if report == nil {
		return err
	}
	doc := newReportDocument(report, err == nil)
	return env.printReport(doc, interrupted(err, report.Mode))
}

// printReport prints a report and returns err, or the error of printing if err is nil.
func (e *env) printReport(doc interface{ print(*env) error }, err error) error {
	var printErr error
	switch {
	case e.json():
		printErr = e.printJSON(doc)
	case err == nil && e.quiet:
	default:
		printErr = doc.print(e)
	}
	if err == nil {
		return printErr
	}
	return err
}

// interrupted replaces the error of an interruption by one that says how to continue.
func interrupted(err error, mode loader.Mode) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return exitError{exitFailed, fmt.Errorf("interrupted in mode %v: nothing is lost, run the same command again to continue", mode)}
}
