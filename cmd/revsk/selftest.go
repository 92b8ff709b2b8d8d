// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/selftest"
)

// inSandboxFlag is given to the process that the selftest starts in a sandbox.
const inSandboxFlag = "in-sandbox"

// The children of the selftest are run before main: their arguments are not those of a command.
func init() { selftest.ChildMain() }

func newSelftestCommand(env *env) *cobra.Command {
	inSandbox := false
	cmd := &cobra.Command{
		Use:   "selftest",
		Short: "Show what leaks with a global hash and not with storage",
		Long: `Ends real sockets on this kernel in every way that there is: first with the
global hash (mode legacy), then with storage on the socket (mode storage). It counts
what the maps hold before and after.

It runs in a cgroup, network namespace and BPF file system of its own,
whatever else runs on the machine, and leaves nothing behind. Of the global
flags it uses only --output and --verbose.

It fails if anything is left in mode storage. It also fails if a case in mode legacy
leaks although it must not on this kernel, or does not leak although it must. It shows
the cases that this kernel cannot run, and ignores them. If it can run none, the exit code
is 4.`,
		Example: `  revsk selftest
  revsk selftest -o json | jq '.cases[] | select(.legacy.cleaned | not) | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if inSandbox {
				return runSelftest(cmd, env)
			}
			return startSelftest(cmd, env)
		},
	}
	cmd.Flags().BoolVar(&inSandbox, inSandboxFlag, false, "")
	_ = cmd.Flags().MarkHidden(inSandboxFlag)
	return cmd
}

// startSelftest runs this command again in a sandbox. That process prints the result.
func startSelftest(cmd *cobra.Command, env *env) error {
	args := []string{cmd.Name(), "--" + inSandboxFlag, "--output=" + env.output}
	if env.verbose {
		args = append(args, "--verbose")
	}
	code, err := sandbox.Run(cmd.Context(), args...)
	if cmd.Context().Err() != nil {
		return exitError{exitFailed, errors.New("interrupted: everything is removed")}
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError{code, nil}
	}
	return nil
}

func runSelftest(cmd *cobra.Command, env *env) error {
	if !sandbox.Inside() {
		return usageError(fmt.Errorf("--%s is for the selftest's own use", inSandboxFlag))
	}
	if err := sandbox.Enter(); err != nil {
		return err
	}
	report, err := selftest.Run(cmd.Context(), selftest.Options{Cgroup: sandbox.Cgroup(), Logger: env.logger()})
	if cmd.Context().Err() != nil {
		// The process outside of the sandbox prints the error.
		return exitError{exitFailed, nil}
	}
	if err != nil {
		return err
	}
	if env.json() {
		err = env.printJSON(api.Selftest{Header: newHeader(api.SelftestSchema), Kernel: report.Kernel, Cases: report.Cases})
	} else {
		err = report.Table(env.Stdout)
	}
	if err != nil {
		return err
	}
	return report.Verdict()
}
