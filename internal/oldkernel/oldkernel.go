// SPDX-License-Identifier: Apache-2.0

// Package oldkernel is for tests of features that some supported kernels lack.
package oldkernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// Skip skips a test of a feature that a kernel release has introduced. On that release and newer ones it fails
// the test, because they should have the feature.
func Skip(t testing.TB, major, minor int, what string) {
	t.Helper()
	if !Before(t, major, minor) {
		t.Fatalf("missing, though Linux has it since %d.%d: %s", major, minor, what)
	}
	t.Skipf("requires Linux %d.%d: %s", major, minor, what)
}

// SkipWithout skips a test of a feature that a kernel of any release can be built or booted without. If the
// kernel shows that it has the feature, it fails the test.
func SkipWithout(t testing.TB, what string, has bool) {
	t.Helper()
	if has {
		t.Fatalf("does not work, though this kernel has it: %s", what)
	}
	t.Skipf("requires %s", what)
}

// SkipWithoutIPv6 skips a test on a machine without IPv6, and fails it on any other.
func SkipWithoutIPv6(t testing.TB) {
	t.Helper()
	SkipWithout(t, "IPv6", Has(t, "/proc/sys/net/ipv6"))
}

// Has tells whether a file of the kernel exists, which shows that the kernel has a feature.
func Has(t testing.TB, file string) bool {
	t.Helper()
	_, err := os.Stat(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}
