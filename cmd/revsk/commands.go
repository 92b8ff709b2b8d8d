// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/cobra"

// commands are those of the command line.
func commands(env *env) []*cobra.Command {
	return []*cobra.Command{
		newLoadCommand(env),
		newUnloadCommand(env),
		newStatusCommand(env),
		newModeCommand(env),
		newMigrateCommand(env),
		newRollbackCommand(env),
		newListCommand(env),
		newServiceCommand(env),
		newTerminateCommand(env),
		newAgentCommand(env),
		newFeaturesCommand(env),
		newSelftestCommand(env),
		newVersionCommand(env),
	}
}
