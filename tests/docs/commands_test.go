// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// commandLines are what a page shows to be typed, by its first word: the lines of its blocks, without their comments, and what it quotes.
func commandLines(t *testing.T, page, program string) (lines []string) {
	t.Helper()
	block := false
	for line := range strings.Lines(readAll(t, page)) {
		if strings.HasPrefix(line, "```") {
			block = !block
			continue
		}
		var shown []string
		if block {
			line, _, _ = strings.Cut(line, " # ")
			shown = regexp.MustCompile(`&&|\||;`).Split(line, -1)
		} else {
			for _, m := range quoted.FindAllStringSubmatch(line, -1) {
				shown = append(shown, m[1])
			}
		}
		for _, s := range shown {
			s = strings.TrimPrefix(strings.TrimSpace(s), "sudo ")
			if strings.HasPrefix(s, program+" ") {
				lines = append(lines, s)
			}
		}
	}
	return lines
}

// helpOf is what a command prints for --help, which TestHelp of cmd/revsk checks. An error where there is no such command.
func helpOf(path []string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, "cmd/revsk/testdata/help", strings.Join(path, "_")+".txt"))
	return string(text), err
}

func hasFlag(help, flag string) bool {
	return regexp.MustCompile(`(?m)^ +(-[a-zA-Z], )?` + regexp.QuoteMeta(flag) + `(,? |$)`).MatchString(help)
}

// Each command of revsk that a page shows is there, and has the flags with which it is shown.
func TestCommandsShownHaveTheirFlags(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		for _, line := range commandLines(t, page, "revsk") {
			words := strings.Fields(line)
			path := words[:1]
			help, err := helpOf(path)
			require.NoError(t, err)
			for _, word := range words[1:] {
				word = strings.Trim(word, "[]")
				if sub, err := helpOf(append(slices.Clip(path), word)); err == nil && !strings.HasPrefix(word, "-") {
					path, help = append(slices.Clip(path), word), sub
				} else if strings.HasPrefix(word, "-") {
					flag, _, _ := strings.Cut(word, "=")
					assert.True(t, hasFlag(help, flag), "%s: %q: %s has no flag %s", page, line, strings.Join(path, " "), flag)
					checked++
				}
			}
			assert.True(t, len(path) > 1 || words[1] == "CMD" || strings.HasPrefix(words[1], "-"), "%s: %q: no such command", page, line)
		}
	}
	assert.Greater(t, checked, 30, "flags that were looked at")
}

// Each flag that a page names by itself is one of some command, and each variable REVSK_… one of the agent.
func TestFlagsNamedExist(t *testing.T) {
	all := readAll(t, "cmd/revsk/testdata/help/*.txt")
	agent, err := helpOf([]string{"revsk", "agent"})
	require.NoError(t, err)
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile("`(--[a-z][a-z0-9-]*)[ =`]").FindAllStringSubmatch(readAll(t, page), -1) {
			assert.True(t, hasFlag(all, m[1]), "%s: no command has the flag %s", page, m[1])
		}
		for _, m := range regexp.MustCompile(`\bREVSK_(TERMINATE|LISTEN|LOG|TAKEOVER)[A-Z_]*`).FindAllString(readAll(t, page), -1) {
			flag := "--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(m, "REVSK_")), "_", "-")
			assert.True(t, hasFlag(agent, flag), "%s: %s stands for no flag of the agent", page, m)
		}
	}
}

// Each target of make that a page shows is in the Makefile, with the variables that it is given.
func TestTargetsShownExist(t *testing.T) {
	makefile := readAll(t, "Makefile")
	has := func(pattern string) bool { return regexp.MustCompile(`(?m)` + pattern).MatchString(makefile) }
	for _, page := range pages(t) {
		for _, line := range commandLines(t, page, "make") {
			for _, word := range strings.Fields(line)[1:] {
				word = strings.Trim(word, "[]\"")
				if variable, _, ok := strings.Cut(word, "="); ok {
					assert.True(t, has(`\$\(`+variable+`\)`), "%s: %q: nothing uses %s", page, line, variable)
				} else if regexp.MustCompile(`^[a-z-]+$`).MatchString(word) {
					assert.True(t, has(`^`+word+`:`), "%s: %q: there is no target %s", page, line, word)
				}
			}
		}
	}
}

// Each flag that a page gives to a program or a test of this module is defined there.
func TestGoCommandsShownHaveTheirFlags(t *testing.T) {
	// Flags of the command itself, as far as pages use them.
	own := strings.Fields("-run -bench -fuzz -v -count -timeout -modfile -tags")
	named := regexp.MustCompile(`[ "](-[a-z.]+)`)
	for _, page := range pages(t) {
		for _, line := range commandLines(t, page, "go") {
			packages := regexp.MustCompile(` \./([A-Za-z0-9_/]+)`).FindAllStringSubmatch(line, -1)
			if len(packages) == 0 {
				continue
			}
			var source string
			for _, m := range packages {
				source += readAll(t, m[1]+"/*.go")
			}
			for _, m := range named.FindAllStringSubmatch(line, -1) {
				if !slices.Contains(own, m[1]) {
					assert.True(t, strings.Contains(source, `"`+m[1][1:]+`"`), "%s: %q: nothing defines %s", page, line, m[1])
				}
			}
		}
	}
}
