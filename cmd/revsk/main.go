// SPDX-License-Identifier: Apache-2.0

// Command revsk loads, manages and shows a socket-level load balancer that keeps its reverse NAT on the sockets.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/internal/blocked"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal, a second one kills the process.
	context.AfterFunc(ctx, stop)
	code := run(ctx, &env{Stdout: os.Stdout, Stderr: os.Stderr, giveUp: giveUp}, os.Args[1:])
	if blocked.Waiting() {
		fmt.Fprintln(os.Stderr, "revsk: the work is done as far as it can be; the kernel ends this process when the socket that a process keeps locked is not any more")
	}
	os.Exit(code)
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, env *env, args []string) int {
	out := &stickyWriter{Writer: env.Stdout}
	env.Stdout = out
	root := newRootCommand(env)
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil && out.err != nil {
		// cobra ignores errors of writing help.
		err = exitError{exitFailed, fmt.Errorf("writing the output: %w", out.err)}
		env.running = true
	}
	if err == nil {
		return 0
	}
	text, code := explain(cmd.CommandPath(), err)
	if !env.running {
		code = exitUsage
		text = fmt.Sprintf("%s: see %s --help", text, cmd.CommandPath())
	}
	var exit exitError
	if !errors.As(err, &exit) || exit.err != nil {
		fmt.Fprintf(env.Stderr, "revsk: %s\n", text)
		if env.json() && out.err == nil && !out.written {
			// If this fails too, the first error is on stderr already.
			_ = env.printJSON(api.Error{Header: newHeader(api.ErrorSchema), Error: text, ExitCode: code})
		}
	}
	return code
}

// markRunning wraps the work of cmd and of every command below it: the wrapper sets env.running, so that later errors are not
// taken for wrong usage, and gives up the capabilities that the command does not need.
func markRunning(env *env, cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			env.running = true
			if env.giveUp != nil {
				if err := env.giveUp(cmd.CommandPath()); err != nil {
					return err
				}
			}
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markRunning(env, sub)
	}
}
