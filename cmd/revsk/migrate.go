// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
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
		Short: "Move what live sockets need from the legacy maps onto the sockets",
		Long: `Moves the entries of the legacy maps (the hash) onto their sockets while
applications go on, verifies that, switches to mode storage, and deletes what was
moved and what was leaked. Applications never see a backend address. The hooks
must be attached: run revsk load first, which begins in mode dual where the hash
has entries.

On a node that was taken over from another agent (revsk load --takeover) it ends
in mode mirror: only what was leaked is deleted, and the hash gets what sockets
hold. The agent ends sockets by what is in the hash, and its programs know no
other sockets when it restarts. With --to storage none of this works any more. In
mirror the agent also ends sockets that have only sent to a deleted backend.

With --dry-run it is an audit, which needs no hooks: on any node with such maps it
says how many entries belong to live sockets, how many are leaked, how full the
maps are and which sockets have lost their entry. It says what to do next.

Every entry is accounted for. If some cannot be moved, they are listed, the mode
stays dual, in which they are still read, and the exit code is 3. A run that is
interrupted, at whatever point, is continued by running the same command again.

Engines, that is, ways to come to the sockets:

  iter   iterators in the kernel; needs Linux 6.5
  pidfd  the descriptors of all processes, one by one; slower, and does not reach
         sockets in no process, such as those in flight in a message
  auto   iter where the kernel can, else pidfd`,
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
		[]string{string(migrate.EngineAuto), string(migrate.EngineIter), string(migrate.EnginePidfd)}, "engine", "", "how to come to the sockets")
	addChoice(cmd, flags, &to, []string{loader.ModeStorage.String(), loader.ModeMirror.String()}, "to", "",
		"mode in which to end; without it mirror on a node that was taken over, else storage")
	flags.BoolVar(&opts.KeepStale, "keep-stale", false, "leave entries in the hash whose service is gone")
	flags.BoolVar(&opts.UnpinSource, "unpin-source", false, "remove the pins of the legacy maps once they are empty")
	flags.BoolVar(&dryRun, "dry-run", false, "audit: say what would become of every entry, but change nothing")
	addWaitFlag(flags, &wait)
	return cmd
}

// prepare returns what the global flags say, and shows progress until the caller calls stop.
func (e *env) prepare() (opts loader.Options, progress func(migrate.Progress), stop func(), err error) {
	if err := unlimitMemory(); err != nil {
		return opts, nil, nil, err
	}
	if opts, err = e.options(); err != nil {
		return opts, nil, nil, err
	}
	progress, stop = e.startProgress()
	return opts, progress, stop, nil
}

func runPlan(ctx context.Context, env *env, engine migrate.Engine, to *loader.Mode) error {
	opts := migrate.PlanOptions{Engine: engine, To: to, Logger: env.logger()}
	var stop func()
	var err error
	if opts.Loader, opts.Progress, stop, err = env.prepare(); err != nil {
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
	var stop func()
	var err error
	if opts.Loader, opts.Progress, stop, err = env.prepare(); err != nil {
		return err
	}
	opts.Loader.Wait = wait
	report, err := migrate.Run(ctx, opts)
	stop()
	if report == nil {
		return err
	}
	doc := newReportDocument(report, err == nil)
	return env.printReport(doc, interrupted(err, report.Mode))
}

// printReport prints what was done, and returns the error with which that ended, if any.
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

// interrupted says of an interruption how to go on after it.
func interrupted(err error, mode loader.Mode) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	return exitError{exitFailed, fmt.Errorf("interrupted in mode %v: nothing is lost, run the same command again to continue", mode)}
}
