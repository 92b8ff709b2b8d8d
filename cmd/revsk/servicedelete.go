// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
)

func newServiceDeleteCommand(env *env) *cobra.Command {
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "delete ADDR:PORT/PROTO",
		Short: "Delete a service",
		Long: `Deletes a service, and those of its backends that no other service has. Open
connections go on. To delete the entry in the internal scope, append /internal to
the protocol.

If there is no such service, the command says so and exits with 0.`,
		Example: `  revsk service delete 10.96.0.1:80/tcp
  revsk service delete '[fd00::1]:53/udp'
  revsk service delete 10.96.0.1:80/tcp/internal`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeServices(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			frontend, err := lbmap.ParseFrontend(args[0])
			if err != nil {
				return err
			}
			return runServiceDelete(cmd.Context(), env, frontend, dryRun, wait)
		},
	}
	addDryRunFlag(cmd.Flags(), &dryRun)
	addServiceWaitFlag(cmd.Flags(), &wait)
	return cmd
}

func runServiceDelete(ctx context.Context, env *env, frontend lbmap.Frontend, dryRun bool, wait time.Duration) error {
	writer, err := openServices(env, wait)
	if err != nil {
		return err
	}
	defer writer.Close()
	remove := writer.Delete
	if dryRun {
		remove = writer.PlanDelete
	}
	change, err := remove(ctx, frontend)
	if errors.Is(err, lbmap.ErrNotFound) {
		return reportNoService(env, dryRun, frontend)
	}
	if err != nil {
		return err
	}
	return reportService(env, dryRun, change)
}

// reportNoService prints that there is no such service. This is no error: it is what was asked for.
func reportNoService(env *env, dryRun bool, frontend lbmap.Frontend) error {
	if env.json() {
		return env.printJSON(api.ServiceChange{Header: newHeader(api.ServiceChangeSchema), DryRun: dryRun, Action: lbmap.ActionKeep, Service: newServiceDocument(lbmap.Service{Frontend: frontend})})
	}
	if env.quiet {
		return nil
	}
	_, err := fmt.Fprintf(env.Stdout, "nothing to delete: there is no service %v\n", frontend)
	return err
}
