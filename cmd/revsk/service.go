// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revsk/revsk/lbmap"
)

func newServiceCommand(env *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Add, delete and list services",
		Long: `Reads and writes the service and backend maps, for machines where no control
plane fills them. Where one does, use "service list" only: the control plane does
not notice changes by others.

After an interruption, run the same "service add" or "service delete" again: it
finishes the work.`,
		Example: `  revsk service add 10.96.0.1:80/tcp --backend 10.0.1.1:8080,10.0.1.2:8080
  revsk service list
  revsk service delete 10.96.0.1:80/tcp`,
		Args: subcommandOnly,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError(errors.New("service needs a command: add, delete or list: see revsk service --help"))
		},
	}
	cmd.AddCommand(newServiceAddCommand(env), newServiceDeleteCommand(env), newServiceListCommand(env))
	return cmd
}

// addServiceWaitFlag adds --wait for commands that write services.
func addServiceWaitFlag(flags *pflag.FlagSet, wait *time.Duration) {
	flags.DurationVar(wait, "wait", time.Minute, "how long to wait for another process that is writing services")
}

// openServices opens the services for writing.
func openServices(env *env, wait time.Duration) (*lbmap.Writer, error) {
	w, err := lbmap.OpenWriter(env.mapsDir())
	if err != nil {
		return nil, err
	}
	w.LimitWait(max(wait, 1), func() {
		if !env.quiet {
			fmt.Fprintf(env.Stderr, "waiting for another process that is writing services: it has the lock of %s\n", env.mapsDir())
		}
	})
	return w, nil
}

// completeServices completes an argument with the existing services.
func completeServices(env *env) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		tables, err := lbmap.OpenTables(env.mapsDir())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer tables.Close()
		services, err := tables.Services(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, s := range services {
			names = append(names, s.Frontend.String())
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
