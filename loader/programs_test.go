// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

// Programs that are kept are attached again as they are, unless others are needed.
func TestKeptProgramsAreAttachedAgain(t *testing.T) {
	opts := options()
	opts.Programs = new(loader.Programs)
	defer opts.Programs.Close()
	load(t, opts)
	first := attached(t)
	again := func() {
		t.Helper()
		dp, err := loader.Load(context.Background(), opts)
		require.NoError(t, err)
		require.NoError(t, dp.Close())
	}

	again()
	require.Equal(t, first, attached(t))
	full, err := opts.WithDefaults()
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(full.PinsDir, "links", "revsk_connect4")))
	// The kernel detaches a link that is pinned no longer a moment later.
	require.Eventually(t, func() bool { return len(attached(t)[ebpf.AttachCGroupInet4Connect]) == 0 }, time.Minute, time.Millisecond)
	again()
	require.Equal(t, first, attached(t))

	// On other maps, and with other constants, they are others.
	require.NoError(t, loader.Unload(context.Background(), opts, true))
	again()
	second := attached(t)
	features := loader.DefaultFeatures()
	features.NodePort = !features.NodePort
	opts.Features = &features
	again()
	third := attached(t)
	for hook := range first {
		require.NotEqual(t, first[hook], second[hook])
		require.NotEqual(t, second[hook], third[hook])
	}
}
