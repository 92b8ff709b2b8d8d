// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// helpWidth is how long a line of help may be.
const helpWidth = 80

func init() { cobra.AddTemplateFunc("reflow", reflow) }

// fitHelp wraps the help of the command and those below it where it is printed.
func fitHelp(cmd *cobra.Command) {
	cmd.SetHelpTemplate(strings.Replace(cmd.HelpTemplate(), "{{. |", "{{. | reflow |", 1))
	cmd.SetUsageTemplate(strings.ReplaceAll(cmd.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", helpWidth)))
}

// reflow fills the lines of each paragraph. Lines that are indented are items of a list: each is wrapped by itself.
func reflow(text string) string {
	var out, paragraph []string
	end := func() {
		out = append(out, breakLine(strings.Join(paragraph, " "), "")...)
		paragraph = nil
	}
	for _, line := range strings.Split(text, "\n") {
		switch {
		case line == "":
			end()
			out = append(out, "")
		case strings.HasPrefix(line, " "):
			end()
			out = append(out, breakLine(line, hangingIndent(line))...)
		default:
			paragraph = append(paragraph, line)
		}
	}
	end()
	return strings.Join(out, "\n")
}

// listTerm is the first column of a list of terms and what they mean.
var listTerm = regexp.MustCompile(`^ +\S+  +`)

// hangingIndent is where the text of an item goes on after its first line.
func hangingIndent(item string) string {
	if t := listTerm.FindString(item); t != "" {
		return strings.Repeat(" ", len(t))
	}
	return strings.Repeat(" ", len(item)-len(strings.TrimLeft(item, " "))+2)
}

// breakLine breaks a line at spaces. Lines after the first are indented.
func breakLine(line, indent string) (lines []string) {
	for utf8.RuneCountInString(line) > helpWidth {
		at := strings.LastIndex(string([]rune(line)[:helpWidth+1]), " ")
		if strings.TrimSpace(line[:max(at, 0)]) == "" {
			break // one long word
		}
		lines = append(lines, line[:at])
		line = indent + strings.TrimLeft(line[at:], " ")
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
