// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLocalPortsThatAreNodePorts(t *testing.T) {
	f := DefaultFeatures()
	for _, c := range []struct {
		local, reserved string
		want            int
	}{
		{"32768\t60999\n", "\n", 0},
		{"32767\t60999\n", "\n", 1},
		{"1024\t65535\n", "\n", 2768},
		{"1024\t29999\n", "\n", 0},
		{"30001\t30010\n", "\n", 10},
		{"1024\t65535\n", "30000-32767\n", 0},
		{"1024\t65535\n", "22,30000-30009,32767,40000-50000\n", 2757},
		{"", "", 0},
	} {
		require.Equal(t, c.want, overlap(c.local, c.reserved, &f), "%q, reserved %q", c.local, c.reserved)
	}
	f.NodePortMin, f.NodePortMax = 32768, 32770
	require.Equal(t, 3, overlap("32768\t60999\n", "", &f))
}

// The tests have a network namespace of their own.
func TestLoadWarnsOfLocalPortsThatAreNodePorts(t *testing.T) {
	before, err := os.ReadFile(localPortRange)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.WriteFile(localPortRange, before, 0)) })
	warnings := func(ports string, f Features) string {
		require.NoError(t, os.WriteFile(localPortRange, []byte(ports), 0))
		var b bytes.Buffer
		Options{Features: &f, Logger: slog.New(slog.NewTextHandler(&b, nil))}.warnOfLocalPorts()
		return b.String()
	}
	f := DefaultFeatures()
	require.Empty(t, warnings("32768 60999", f))
	require.Regexp(t, `ports=2768 ip_local_port_range=1024-60999 nodeport_range=30000-32767 `, warnings("1024 60999", f))
	f.NodePort = false // then nothing is refused
	require.Empty(t, warnings("1024 60999", f))
}
