// SPDX-License-Identifier: Apache-2.0

package cgroup2

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFind(t *testing.T) {
	const other = "22 21 0:20 / /proc rw - proc proc rw\n"
	for name, test := range map[string]struct {
		mounts, want string
	}{
		"unified":               {other + "30 21 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		"a blank":               {`30 21 0:26 / /mnt/a\040b\134c rw - cgroup2 cgroup2 rw`, `/mnt/a b\c`},
		"a part of it only":     {"30 21 0:26 /system.slice /mnt rw - cgroup2 cgroup2 rw\n", ""},
		"nowhere":               {other, ""},
		"the host's beside":     {"30 21 0:26 / /a rw - cgroup2 cgroup2 rw\n31 21 0:26 /../.. /host rw - cgroup2 cgroup2 rw\n", "/host"},
		"the host's before":     {"31 21 0:26 /../.. /host rw - cgroup2 cgroup2 rw\n30 21 0:26 / /a rw - cgroup2 cgroup2 rw\n", "/host"},
		"the namespace's alone": {"30 21 0:26 / /a rw - cgroup2 cgroup2 rw\n", "/a"},
		"another branch":        {"30 21 0:26 /../other /a rw - cgroup2 cgroup2 rw\n", ""},
	} {
		found, err := find(strings.NewReader(test.mounts))
		require.Equal(t, test.want, found, name)
		if test.want == "" {
			require.ErrorIs(t, err, ErrNone, name)
		}
	}
}
