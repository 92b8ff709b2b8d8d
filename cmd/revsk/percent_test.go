// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyAllIs100PercentAndOnlyNothingIs0(t *testing.T) {
	for _, c := range []struct {
		part, of int
		percent  float64
		share    string
	}{
		{0, 0, 0, "0.0%"}, {0, 7, 0, "0.0%"}, {7, 7, 100, "100.0%"}, {6, 4, 150, "150.0%"}, {1, 3, 33.33, "33.3%"},
		{131004, 131009, 99.99, "99.9%"}, {1, 131009, 0.01, "0.1%"},
	} {
		require.Equal(t, c.percent, percent(c.part, c.of), c)
		require.Equal(t, c.share, share(percent(c.part, c.of)), c)
	}
}
