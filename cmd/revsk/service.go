// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
)

func newServiceCommand(env *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Add, delete and list services",
		Long: `Reads and writes the service and backend maps, for machines where no control plane
fills them. Where one does, use "service list" only: what else writes the same
maps and the control plane do not know of each other.`,
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

// openTables opens the maps of services. A dry run gets a copy of them, so that it can do all that
// would be done, and find out what would fail.
func openTables(env *env, dryRun bool) (*lbmap.Tables, error) {
	tables, err := lbmap.OpenTables(env.mapsDir())
	if err != nil || !dryRun {
		return tables, err
	}
	defer tables.Close()
	return copyTables(tables)
}

// changeTables runs change on the maps of services while no other revsk changes them.
func changeTables(ctx context.Context, env *env, dryRun bool, change func(*lbmap.Tables) error) error {
	dir, err := os.Open(env.mapsDir())
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", env.mapsDir(), lbmap.ErrNoMap)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		// It takes a moment: nobody keeps this lock.
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) || ctx.Err() != nil {
			return fmt.Errorf("locking %s: %w", env.mapsDir(), err)
		}
	}
	tables, err := openTables(env, dryRun)
	if err != nil {
		return err
	}
	defer tables.Close()
	return change(tables)
}

// completeServices offers the services that exist.
func completeServices(env *env) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		tables, err := openTables(env, false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer tables.Close()
		services, err := tables.Services()
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
