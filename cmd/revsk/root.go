// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newRootCommand(env *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "revsk",
		Short: "Socket-local reverse NAT for socket-level load balancing",
		Long: `revsk translates connections and datagrams to a service: it sends them to one of
the service's backends, and shows the application the address of the service. BPF
programs on the sockets of a cgroup do this. They remember the service of a socket
on the socket itself, and not in a global hash. So nothing leaks, and no socket
loses its service because of others.

All state is in the BPF file system, and no daemon is needed. revsk agent is a
daemon that runs the other commands by itself when they are needed. Commands that
read (status, list, features) change nothing. Commands that change something have
--dry-run, which checks everything and prints the changes without making them.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done, 4 not supported by
this kernel. Data goes to standard output, messages to standard error. JSON
output has a field "schema" with the name and version of its format.`,
		Example: `  revsk features                  # can this kernel do it?
  revsk load                      # start, or replace a running version
  revsk service add 10.96.0.1:80/tcp --backend 10.0.1.1:8080,10.0.1.2:8080
  revsk status
  revsk list                      # sockets that talk to a service
  revsk migrate --dry-run         # how much of the legacy maps is leaked?
  revsk unload`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          subcommandOnly,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)

	flags := root.PersistentFlags()
	flags.SortFlags = false
	flags.StringVar(&env.cgroup, "cgroup", "", "`directory` of the cgroup2 hierarchy whose processes are served (default where cgroup2 is mounted)")
	flags.StringVar(&env.bpffs, "bpffs", "/sys/fs/bpf", "`directory` where a BPF file system is mounted")
	flags.StringVar(&env.maps, "maps", "", "`directory` of the pinned service, backend and legacy maps (default <bpffs>/tc/globals)")
	flags.StringVar(&env.pins, "pins", "", "`directory` of revsk's own pins (default <bpffs>/revsk)")
	env.output = outputTable
	addChoice(root, flags, &env.output, []string{outputTable, outputJSON}, "output", "o", "output format")
	flags.BoolVarP(&env.verbose, "verbose", "v", false, "print each step on standard error")
	flags.BoolVar(&env.quiet, "quiet", false, "print data and errors only, no confirmations")
	root.MarkFlagsMutuallyExclusive("verbose", "quiet")

	root.AddCommand(commands(env)...)
	root.InitDefaultCompletionCmd()
	addNeedsToHelp(root)
	fitHelp(root)
	markRunning(env, root)
	return root
}

// subcommandOnly refuses arguments that are not subcommands, and suggests similar ones.
func subcommandOnly(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		err = fmt.Errorf("%w, did you mean %s?", err, strings.Join(similar, " or "))
	}
	return err
}

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	words []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return strings.Join(c.words, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("use one of %s", strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

// addChoice adds a [choice], with completion.
func addChoice(cmd *cobra.Command, flags *pflag.FlagSet, value *string, words []string, name, short, usage string) {
	flags.VarP(&choice{value, words}, name, short, usage)
	// Fails only if there is no such flag.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}
