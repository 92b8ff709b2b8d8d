// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/lbmap"
)

func newServiceDeleteCommand(env *env) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "delete ADDR:PORT/PROTO",
		Short: "Delete a service",
		Long: `Deletes a service, and those of its backends that no other service has. Connections
that are open go on, but sockets no longer show the service's address. An entry
in the internal scope is named with /internal behind the protocol.`,
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
			return runServiceDelete(cmd.Context(), env, frontend, dryRun)
		},
	}
	addDryRunFlag(cmd.Flags(), &dryRun)
	return cmd
}

func runServiceDelete(ctx context.Context, env *env, frontend lbmap.Frontend, dryRun bool) error {
	var service lbmap.Service
	err := changeTables(ctx, env, dryRun, func(tables *lbmap.Tables) (err error) {
		if service, err = tables.Service(frontend); err != nil {
			return err
		}
		return tables.DeleteService(frontend)
	})
	if err != nil {
		return err
	}
	return reportService(env, "delete", dryRun, service)
}
