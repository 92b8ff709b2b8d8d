// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"strings"
)

// compareVersions orders Debian versions (epoch:upstream-revision) as dpkg does.
func compareVersions(a, b string) int {
	epochA, upA, revA := splitVersion(a)
	epochB, upB, revB := splitVersion(b)
	for _, pair := range [][2]string{{epochA, epochB}, {upA, upB}, {revA, revB}} {
		if c := compareVersionPart(pair[0], pair[1]); c != 0 {
			return c
		}
	}
	return 0
}

func splitVersion(v string) (epoch, upstream, revision string) {
	epoch, rest, found := strings.Cut(v, ":")
	if !found {
		epoch, rest = "0", v
	}
	if i := strings.LastIndexByte(rest, '-'); i >= 0 {
		return epoch, rest[:i], rest[i+1:]
	}
	return epoch, rest, ""
}

// compareVersionPart compares alternately a run of other characters and a run of digits.
func compareVersionPart(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !isDigit(a[0])) || (b != "" && !isDigit(b[0])) {
			if c := cmp.Compare(charOrder(a), charOrder(b)); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
		}
		var numA, numB string
		numA, a = cutNumber(a)
		numB, b = cutNumber(b)
		if c := cmp.Compare(len(numA), len(numB)); c != 0 {
			return c
		}
		if c := strings.Compare(numA, numB); c != 0 {
			return c
		}
	}
	return 0
}

// charOrder is the weight of the first character: ~ before the end, the end (or a digit) before
// letters, letters before everything else.
func charOrder(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case 'a' <= s[0]|0x20 && s[0]|0x20 <= 'z':
		return int(s[0])
	default:
		return int(s[0]) + 256
	}
}

// cutNumber cuts the leading digits off, without their leading zeros.
func cutNumber(s string) (number, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
