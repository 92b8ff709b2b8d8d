// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVerify(t *testing.T) {
	file := filepath.Join(t.TempDir(), "linux.deb")
	const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // of "abc"
	require.ErrorIs(t, verify(file, sum), fs.ErrNotExist)
	require.NoError(t, os.WriteFile(file, []byte("abc"), 0o644))
	require.NoError(t, verify(file, sum))
	require.NoError(t, os.WriteFile(file, []byte("abd"), 0o644))
	require.ErrorContains(t, verify(file, sum), "linux.deb has SHA256 ")
	require.Error(t, verify(file, ""), "an index without a checksum")
}
