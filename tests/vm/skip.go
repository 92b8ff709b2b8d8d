// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A series is the first two numbers of a kernel's release.
type series struct{ major, minor int }

var (
	seriesStart   = regexp.MustCompile(`^(\d+)\.(\d+)`)
	requiresLinux = regexp.MustCompile(`requires Linux (\d+\.\d+)\b`)

	requiresOption = regexp.MustCompile(`requires (CONFIG_\w+)`)
	notSet         = regexp.MustCompile(`^# (CONFIG_\w+) is not set`)
)

func parseSeries(release string) (series, error) {
	m := seriesStart.FindStringSubmatch(release)
	if m == nil {
		return series{}, fmt.Errorf("%q does not begin with a kernel version", release)
	}
	major, errMajor := strconv.Atoi(m[1])
	minor, errMinor := strconv.Atoi(m[2])
	if errMajor != nil || errMinor != nil {
		return series{}, fmt.Errorf("%q does not begin with a kernel version", release)
	}
	return series{major, minor}, nil
}

func (s series) less(o series) bool {
	return s.major < o.major || s.major == o.major && s.minor < o.minor
}

func (s series) String() string { return fmt.Sprintf("%d.%d", s.major, s.minor) }

// forbiddenSkip says why a test must not skip on a machine, "" if it may. A skip is allowed only
// with "requires Linux X.Y" for a newer kernel than the one that runs, with "requires CONFIG_X" for an
// option that the kernel is built without, or with "requires " and something that the machine's variant
// takes away. Otherwise a test that skips everywhere would look like one that passes.
//
// The running kernel is allowed other skips, because nobody has made it what the suites expect.
func (r rules) forbiddenSkip(output string) string {
	if m := requiresLinux.FindStringSubmatch(output); m != nil {
		minimum, err := parseSeries(m[1])
		if err != nil {
			return err.Error()
		}
		if r.booted.less(minimum) {
			return ""
		}
		return fmt.Sprintf("skipped as if Linux %v were older than %v", r.booted, minimum)
	}
	if slices.ContainsFunc(r.lacks, func(s string) bool { return strings.Contains(output, "requires "+s) }) {
		return ""
	}
	if m := requiresOption.FindStringSubmatch(output); m != nil && r.unset[m[1]] {
		return ""
	}
	if r.running {
		return ""
	}
	return "skipped for another reason than \"requires Linux X.Y\""
}

// unsetOptions are the options that a kernel is built without, by its configuration.
func unsetOptions(config string) map[string]bool {
	unset := make(map[string]bool)
	for line := range strings.Lines(config) {
		if m := notSet.FindStringSubmatch(line); m != nil {
			unset[m[1]] = true
		}
	}
	return unset
}
