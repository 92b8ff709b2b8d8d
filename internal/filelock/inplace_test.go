// SPDX-License-Identifier: Apache-2.0

package filelock

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	in, err := InPlace(f)
	require.NoError(t, err)
	require.True(t, in)

	require.NoError(t, os.Rename(path, path+"2"))
	in, err = InPlace(f)
	require.NoError(t, err)
	require.False(t, in)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	in, err = InPlace(f)
	require.NoError(t, err)
	require.False(t, in, "another file")

	// That it cannot be seen does not say that it is gone.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink("a", path))
	_, err = InPlace(f)
	require.ErrorIs(t, err, unix.ELOOP)
}
