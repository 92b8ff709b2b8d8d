// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMemoryCgroupsGoWithTheirSandbox(t *testing.T) {
	memory, root := t.TempDir(), t.TempDir()
	for _, dir := range []string{
		filepath.Join(root, cgroupPrefix+"12"),
		filepath.Join(memory, cgroupPrefix+"12"), filepath.Join(memory, cgroupPrefix+"12-owner"),
		filepath.Join(memory, cgroupPrefix+"1"), filepath.Join(memory, cgroupPrefix+"1-hostile"),
		filepath.Join(memory, cgroupPrefix+"123-limited-4"), filepath.Join(memory, "another"),
	} {
		require.NoError(t, os.Mkdir(dir, 0o700))
	}
	removeMemoryCgroups(memory, root)
	left, err := filepath.Glob(filepath.Join(memory, "*"))
	require.NoError(t, err)
	require.Equal(t, []string{
		filepath.Join(memory, "another"), filepath.Join(memory, cgroupPrefix+"12"), filepath.Join(memory, cgroupPrefix+"12-owner"),
	}, left)
}

func TestAtRestAwaitsWhatIsFreedLater(t *testing.T) {
	begin := time.Now()
	got, err := AtRest(func() (int, error) {
		return max(10, 30-int(time.Since(begin)/(800*time.Millisecond))*10), nil
	})
	require.NoError(t, err)
	require.Equal(t, 10, got)
}
