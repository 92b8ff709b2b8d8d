// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const optmemSetting = "/proc/sys/net/core/optmem_max"

// optmemMax is what sockets of this network namespace may have; before Linux 6.12 only the first
// namespace shows it.
func optmemMax(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(optmemSetting)
	if err != nil {
		return 20480
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	return n
}

// setOptmem sets it for the rest of the test; false where that cannot be done.
func setOptmem(t *testing.T, n int) bool {
	t.Helper()
	before := optmemMax(t)
	if os.WriteFile(optmemSetting, []byte(strconv.Itoa(n)), 0) != nil {
		return false
	}
	t.Cleanup(func() { _ = os.WriteFile(optmemSetting, []byte(strconv.Itoa(before)), 0) })
	return true
}

func raiseOptmem(t *testing.T) bool {
	t.Helper()
	return setOptmem(t, 131072)
}
