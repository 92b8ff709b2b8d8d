// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCompareVersions(t *testing.T) {
	// Each is older than the next.
	for _, order := range [][]string{
		{"5.10.0-9", "5.10.0-46"},
		{"6.1.176-1~deb11u1", "6.1.176-1", "6.1.192-2", "6.12.9-1", "6.12.10-1"},
		{"6.12.90+deb13", "6.12.90+deb13.1", "6.12.115+deb13"},
		{"7.2.12-1~bpo13+1", "7.2.12-1", "7.2.12-1+b1"},
		{"1.0~~", "1.0~", "1.0", "1.0a", "1.0b", "1.0+"},
		{"9.9-9", "1:0.1-1", "2:0-1"},
		{"1-1", "1.0-0"},
	} {
		for i := range order {
			for j := range order {
				require.Equal(t, cmp.Compare(i, j), compareVersions(order[i], order[j]), "%s, %s", order[i], order[j])
			}
		}
	}
	require.Zero(t, compareVersions("0:1.0-1", "1.0-1"))
	require.Zero(t, compareVersions("1.01-1", "1.1-1"))
}
