// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

func newRollbackCommand(env *env) *cobra.Command {
	var opts migrate.RollbackOptions
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Write what sockets hold into the legacy maps (mode legacy)",
		Long: `Undoes revsk migrate: writes what live sockets hold into the legacy maps (the
hash), verifies that, and switches to mode legacy, in which the hooks work with the
hash only. Applications keep running. After that the programs of another agent can
take over, and no socket loses its service.

If the legacy maps have too little room, it changes nothing and says so. With
--force it goes on: entries that do not fit are evicted, and those sockets
show their backend's address from then on.

After an interruption, run the same command again: it continues.`,
		Example: `  revsk rollback --dry-run                    # does everything fit?
  revsk rollback
  revsk rollback -o json | jq .missing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRollback(cmd.Context(), env, opts, dryRun, wait)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&opts.Force, "force", false, "go on even if the legacy maps have too little room, and sockets lose their service")
	addDryRunFlag(flags, &dryRun)
	addWaitFlag(flags, &wait)
	return cmd
}

func runRollback(ctx context.Context, env *env, opts migrate.RollbackOptions, dryRun bool, wait time.Duration) error {
	opts.Logger = env.logger()
	stop, err := env.prepare(&opts.Loader, &opts.Progress)
	if err != nil {
		return err
	}
	opts.Loader.Wait = wait
	report, err := rollback(ctx, opts, dryRun)
	stop()
	if report == nil {
		return err
	}
	doc := newRollbackDocument(report, dryRun, err == nil)
	return env.printReport(doc, interrupted(err, report.Mode))
}

func rollback(ctx context.Context, opts migrate.RollbackOptions, dryRun bool) (*migrate.RollbackReport, error) {
	if !dryRun {
		return migrate.Rollback(ctx, opts)
	}
	plan, err := migrate.PlanRollback(ctx, opts)
	if plan == nil {
		return nil, err
	}
	return &migrate.RollbackReport{Mode: plan.Mode, Tuples: plan.Tuples, Maps: plan.Maps, Steps: plan.Steps}, err
}

// rollbackDocument is what rollback prints.
type rollbackDocument struct{ api.RollbackReport }

func newRollbackDocument(r *migrate.RollbackReport, dryRun, complete bool) rollbackDocument {
	doc := rollbackDocument{api.RollbackReport{
		Header:     newHeader(api.RollbackReportSchema),
		DryRun:     dryRun,
		Complete:   complete,
		Mode:       r.Mode,
		Tuples:     r.Tuples,
		Written:    r.Written,
		Present:    r.Present,
		Removed:    r.Removed,
		Outdated:   r.Outdated,
		Missing:    r.Missing,
		Passes:     r.Passes,
		Maps:       newFillDocuments(r.Maps),
		Unresolved: newUnresolvedDocuments(r.Unresolved),
	}}
	doc.Steps, doc.Seconds = newStepDocuments(r.Steps)
	return doc
}

func (d rollbackDocument) print(env *env) error {
	var head, tuples, fill table
	head.row("mode", d.Mode)
	head.row("compared", count(d.Passes, "time", "times"))
	tuples.counts("TUPLES", []counted{
		{"on sockets", "at the beginning", d.Tuples},
		{"written", "to the hash", d.Written},
		{"present", "in the hash already", d.Present},
		{"removed", "written, but the socket was closed meanwhile", d.Removed},
		{"outdated", "in the hash, which was out of date: deleted first", d.Outdated},
		{"missing", "the hash has no room for them", d.Missing},
	}...)
	if len(d.Maps) > 0 {
		addFill(&fill, d.Maps, "TUPLES")
	}
	if err := printSections(env.Stdout, head, tuples, fill, stepTable(d.Steps, d.Seconds), unresolvedTable(d.Unresolved)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(env.Stdout, "\n%s\n", d.verdict())
	return err
}

// verdict says what the result means, and names the next command.
func (d rollbackDocument) verdict() string {
	switch {
	case !d.Complete && len(d.Steps) <= 1: // the first step only reads
		return fmt.Sprintf("Nothing was changed, the mode is %v.", d.Mode)
	case !d.Complete:
		return fmt.Sprintf("Not finished, in mode %v: no socket has lost its service. Next: revsk rollback, again.", d.Mode)
	case d.Mode == loader.ModeLegacy && len(d.Steps) == 0:
		return "The mode is legacy already: nothing to do."
	case d.DryRun:
		return fmt.Sprintf("Everything fits. Next: revsk rollback, which writes these %s to the hash and switches to mode legacy.",
			count(d.Tuples, "tuple", "tuples"))
	case d.Missing > 0:
		return fmt.Sprintf("Done, with --force: %s not in the hash, and their sockets have lost their service. Next: revsk status.",
			count(d.Missing, "tuple is", "tuples are"))
	}
	return "Done: the hash has what live sockets need, and the hooks read nothing else. Next: revsk unload --hand-back, or revsk migrate to return."
}
