// SPDX-License-Identifier: Apache-2.0

// Package oldkernel is for tests of what not every supported kernel has.
package oldkernel

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// Before tells whether the running kernel is older than a release.
func Before(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatalf("asking for the kernel's release: %v", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	var hasMajor, hasMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &hasMajor, &hasMinor); err != nil {
		t.Fatalf("the kernel's release is %q: %v", release, err)
	}
	return hasMajor < major || hasMajor == major && hasMinor < minor
}

// Skip skips a test for want of something that came with a release. On that one and newer ones it fails the
// test: there it should not be missing.
func Skip(t testing.TB, major, minor int, what string) {
	t.Helper()
	if !Before(t, major, minor) {
		t.Fatalf("missing, though Linux has it since %d.%d: %s", major, minor, what)
	}
	t.Skipf("requires Linux %d.%d: %s", major, minor, what)
}
