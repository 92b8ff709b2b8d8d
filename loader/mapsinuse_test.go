// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
)

// What a map is for is told by its type, its sizes, and the 15 bytes of its name that the kernel keeps.
func TestMapsDifferInWhatTheKernelKeeps(t *testing.T) {
	spec, err := sock.LoadSock()
	require.NoError(t, err)
	seen := make(map[string]string)
	for name, m := range spec.Maps {
		kept := fmt.Sprint(m.Type, m.KeySize, m.ValueSize, " ", name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)])
		require.NotContains(t, seen, kept, name)
		seen[kept] = name
	}
}
