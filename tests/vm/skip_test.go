// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestForbiddenSkip(t *testing.T) {
	on := series{6, 1}
	unset := unsetOptions("CONFIG_NET=y\n# CONFIG_MPTCP is not set\n#\n# Options\n")
	for _, test := range []struct {
		output  string
		lacks   []string
		running bool
		allowed bool
	}{
		{output: "    x_test.go:7: requires Linux 6.12: bpf_sock_destroy\n", allowed: true},
		{output: "requires Linux 7.0", allowed: true},
		{output: "requires Linux 6.1"},
		{output: "requires Linux 5.10"},
		{output: "requires Linux 6.1", running: true},
		{output: "requires Linux 6.12", running: true, allowed: true},
		{output: "requires linux 6.12"},
		{output: "requires Linux"},
		{output: "not root"},
		{output: "not root", running: true, allowed: true},
		{output: ""},
		{output: "requires IPv6"},
		{output: "requires IPv6", lacks: []string{"IPv6"}, allowed: true},
		{output: "requires BTF", lacks: []string{"IPv6"}},
		{output: "requires Linux 5.10 and IPv6", lacks: []string{"IPv6"}},
		{output: "requires CONFIG_MPTCP", allowed: true},
		{output: "requires CONFIG_MPTCP_IPV6"},
		{output: "requires CONFIG_NET"},
	} {
		r := rules{booted: on, lacks: test.lacks, running: test.running, unset: unset}
		why := r.forbiddenSkip(test.output)
		require.Equal(t, test.allowed, why == "", "%+v: %q", test, why)
	}
}

func TestParseSeries(t *testing.T) {
	for release, want := range map[string]series{
		"5.10.0-46-cloud-amd64": {5, 10}, "7.2.12+deb13-cloud-amd64": {7, 2}, "6.1": {6, 1}, "6.18.44-fc-v669": {6, 18},
	} {
		got, err := parseSeries(release)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"", "six", "6", "v6.1", "99999999999999999999.1"} {
		_, err := parseSeries(bad)
		require.Error(t, err, bad)
	}
	require.True(t, series{5, 10}.less(series{6, 1}))
	require.True(t, series{6, 1}.less(series{6, 12}))
	require.False(t, series{6, 12}.less(series{6, 12}))
	require.False(t, series{7, 0}.less(series{6, 12}))
}
