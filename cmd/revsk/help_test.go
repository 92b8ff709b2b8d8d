// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"iter"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// allCommands iterates over every command, cobra's own included.
func allCommands() iter.Seq[*cobra.Command] {
	return func(yield func(*cobra.Command) bool) {
		root := newRootCommand(&env{Stdout: io.Discard, Stderr: io.Discard})
		var walk func(*cobra.Command) bool
		walk = func(cmd *cobra.Command) bool {
			if !yield(cmd) {
				return false
			}
			for _, sub := range cmd.Commands() {
				if !walk(sub) {
					return false
				}
			}
			return true
		}
		walk(root)
	}
}

func TestHelp(t *testing.T) {
	for cmd := range allCommands() {
		path := strings.Fields(cmd.CommandPath())
		t.Run(strings.Join(path, "_"), func(t *testing.T) {
			r := runCommand(t, append(path[1:], "--help")...).ok()
			golden(t, "help/"+strings.Join(path, "_")+".txt", r.stdout)
			if cmd.Parent() != nil && cmd.Parent().Name() == "completion" {
				return // cobra's own text
			}
			for line := range strings.Lines(r.stdout) {
				require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), helpWidth, line)
			}
		})
	}
}

func TestReflow(t *testing.T) {
	long := strings.Repeat("word ", 16) + "word"
	for text, want := range map[string]string{
		"":                         "",
		"one\ntwo\n\nthree":        "one two\n\nthree",
		long:                       strings.TrimSpace(strings.Repeat("word ", 16)) + "\nword",
		"a:\n  item\n  other\nend": "a:\n  item\n  other\nend",
		"  " + long:                "  " + strings.TrimSpace(strings.Repeat("word ", 15)) + "\n    word word",
		strings.Repeat("x", 90):    strings.Repeat("x", 90),
	} {
		require.Equal(t, want, reflow(text))
	}
}

func TestEveryCommandTeaches(t *testing.T) {
	for cmd := range allCommands() {
		if strings.HasPrefix(cmd.CommandPath(), "revsk completion") || cmd.Name() == "help" {
			continue
		}
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		require.NotEmpty(t, cmd.Long, cmd.CommandPath())
		require.NotEmpty(t, cmd.Example, cmd.CommandPath())
		require.False(t, strings.HasSuffix(cmd.Short, "."), cmd.CommandPath())
	}
}

func TestExamplesAreUnderstood(t *testing.T) {
	for cmd := range allCommands() {
		if strings.HasPrefix(cmd.CommandPath(), "revsk completion") {
			continue
		}
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(line, " #")
			line, _, _ = strings.Cut(line, " |")
			words := strings.Fields(strings.ReplaceAll(line, "'", ""))
			require.NotEmpty(t, words, cmd.CommandPath())
			require.Equal(t, "revsk", words[0], line)

			root := newRootCommand(&env{Stdout: io.Discard, Stderr: io.Discard})
			found, args, err := root.Find(words[1:])
			require.NoError(t, err, line)
			require.NotSame(t, root, found, line)
			require.NoError(t, found.ParseFlags(args), line)
			require.NoError(t, found.ValidateArgs(found.Flags().Args()), line)
			require.NoError(t, found.ValidateFlagGroups(), line)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.Contains(t, runCommand(t, "completion", shell).ok().stdout, "revsk")
	}
	require.Contains(t, runCommand(t, "__complete", "load", "--mode", "").stdout, "storage\nmirror\ndual\nlegacy\n")
	require.Contains(t, runCommand(t, "__complete", "mode", "").stdout, "storage\nmirror\ndual\nlegacy\n")
}

func TestCompletionOffersServices(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("service", "add", "10.96.0.1:80/tcp", "--no-backend").ok()
	r := runCommand(t, append([]string{"__complete"}, p.args("service", "delete", "")...)...)
	require.Contains(t, r.stdout, "10.96.0.1:80/tcp\n")
}
