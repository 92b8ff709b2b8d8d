// SPDX-License-Identifier: Apache-2.0

package cgroup2

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the mounts are: what is found is a mount point that is among them.
func FuzzFind(f *testing.F) {
	for _, s := range []string{
		"", "22 21 0:20 / /proc rw - proc proc rw\n",
		"30 21 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n",
		"30 21 0:25 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 21 0:25 / /a\\040b rw - cgroup2 none rw\n",
		"30 21 0:25 /x /y rw - cgroup2 cgroup2 rw\n", " - cgroup2 \n", "1 2 3 / - cgroup2 x\n", "\\134040",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, mounts string) {
		found, err := find(strings.NewReader(mounts))
		if err != nil {
			require.Empty(t, found)
			return
		}
		for line := range strings.Lines(mounts) {
			if fields := strings.Fields(line); len(fields) > 4 && unescape(fields[4]) == found {
				return
			}
		}
		t.Errorf("%q is no mount point", found)
	})
}
