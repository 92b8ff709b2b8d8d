// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/oldkernel"
)

func TestVerifierIsPrecise(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	precise, err := PreciseVerifier()
	require.NoError(t, err)
	if !precise {
		oldkernel.Skip(t, 6, 8, "a verifier that knows what functions read of their caller's stack")
	}
}
