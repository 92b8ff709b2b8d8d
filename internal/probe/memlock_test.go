// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMapsAreAllowedWhereTheKernelCouldNotBeAsked(t *testing.T) {
	require.NoError(t, AllowMaps())
	refused := fmt.Errorf("failed to set memlock rlimit: %w", unix.EPERM)
	require.Equal(t, refused, allowMaps(refused))
	require.NoError(t, allowMaps(errors.New("unexpected error detecting memory cgroup accounting: too many open files")))
}
