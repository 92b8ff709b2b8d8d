// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the verifier walks is at most half as much again as docs/verifier.json says, so that a change that makes
// it much more shows in that file, too. make generate writes it.
func TestTheVerifierWalksWhatIsRecorded(t *testing.T) {
	all, err := measure(true)
	require.NoError(t, err)
	kernels, err := recorded("../../docs/verifier.json")
	require.NoError(t, err)
	version, err := kernel()
	require.NoError(t, err)
	for name, s := range all {
		assert.Less(t, s.Verified, 500_000, "%s: half of the kernel's limit", name)
		was, ok := kernels[version][name]
		if !ok {
			t.Logf("%s: nothing is recorded of Linux %s", name, version)
			continue
		}
		assert.LessOrEqual(t, s.Verified, was.Verified*3/2, "%s: instructions that the verifier walks", name)
		assert.LessOrEqual(t, s.PeakStates, was.PeakStates*3/2, "%s: states that it keeps at once", name)
	}
}
