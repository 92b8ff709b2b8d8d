// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// alarms are what a kernel writes when something is wrong with it.
var alarms = regexp.MustCompile(strings.Join([]string{
	`WARNING:`,
	`BUG:`,
	`possible circular locking`,
	`possible recursive locking`,
	`inconsistent lock state`,
	`suspicious RCU usage`,
	`rcu.*\bstall`,
	`soft lockup`,
	`blocked for more than \d+ seconds`,
	`\bOops\b`,
	`Call Trace:`,
	`Kernel panic`,
	`general protection fault`,
	`\b(KASAN|KCSAN|KFENCE|UBSAN):`,
	`unregister_netdevice: waiting for`,
	`Out of memory:`,
}, "|"))

// harmless are lines that only look like alarms.
var harmless = regexp.MustCompile(strings.Join([]string{
	`Command line:|Kernel command line:`, // may well name an option
	`Spectre V2 : WARNING:`,              // about the processor and the mitigations chosen
	`RETBleed: WARNING:`,
}, "|"))

// alarmLines is how much of the console belongs to one alarm: a warning, its registers, its trace.
const alarmLines = 50

// scanConsole returns the alarms in a kernel's messages, each with the lines that follow it.
func scanConsole(r io.Reader) ([]string, error) {
	var found []string
	var current []string
	end := func() {
		if current != nil {
			found = append(found, strings.Join(current, "\n"))
		}
		current = nil
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if len(current) == alarmLines {
			end()
		}
		switch {
		case current != nil:
			current = append(current, line)
		case alarms.MatchString(line) && !harmless.MatchString(line):
			current = []string{line}
		}
	}
	end()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the console: %w", err)
	}
	return found, nil
}

// unexpectedInt3 is what a kernel writes of a breakpoint that it did not expect, up to the byte before the place
// where it went on.
var unexpectedInt3 = regexp.MustCompile(`(?s)\bint3: 0000 .*?\bCode: [0-9a-f ]*\b([0-9a-f]{2}) <`)

// ranStaleBreakpoint tells whether a machine went down by a fault of the emulator: once in hundreds of boots QEMU
// (7.2 and 8.0 at least) lets a processor run a breakpoint (int3, the byte cc) that the kernel, which patches
// its own code by these on the others, has taken away. Then there is none at the place. See
// "qemu-x86_64 booting with 8.0.0 stil see int3" on linux-kernel of July 2023,
// http://www.uwsg.indiana.edu/hypermail/linux/kernel/2307.0/03869.html.
func ranStaleBreakpoint(console string) bool {
	place := unexpectedInt3.FindStringSubmatch(console)
	return place != nil && place[1] != "cc"
}

// badTaint are the flags of /proc/sys/kernel/tainted that say that something went wrong, and not
// merely that something unusual is loaded.
var badTaint = []struct {
	bit  uint
	what string
}{
	{4, "machine check"},
	{5, "bad page"},
	{7, "oops"},
	{9, "warning"},
	{14, "soft lockup"},
}

// newTaint says what has gone wrong between two readings of the kernel's taint.
func newTaint(before, after uint64) []string {
	var what []string
	for _, t := range badTaint {
		if after&^before&(1<<t.bit) != 0 {
			what = append(what, t.what)
		}
	}
	return what
}
