// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"

	"github.com/revsk/revsk/internal/sandbox"
)

// The kernels that these tests run on have all that is required; what else they have differs.
func TestFeatures(t *testing.T) {
	var doc featuresDocument
	r := runCommand(t, "features", "-o", "json", "--cgroup", sandbox.Cgroup()).ok()
	r.json(&doc)
	require.Equal(t, "revsk/features/v1", doc.Schema)
	require.Equal(t, kernelRelease(), doc.Kernel)
	names := make(map[string]bool)
	for _, f := range doc.Features.Features {
		require.False(t, names[f.Name], "%s twice", f.Name)
		names[f.Name] = true
		require.NotEmpty(t, f.NeededFor, f.Name)
		require.NotEmpty(t, f.Since, f.Name)
		require.True(t, f.Available || !f.Required, f.Name)
	}
	require.Contains(t, runCommand(t, "features", "--cgroup", sandbox.Cgroup()).stdout, "sock_release hook")
}

func TestFeaturesOfAPlaceThatCannotRunIt(t *testing.T) {
	r := runCommand(t, "features", "--quiet", "--cgroup", t.TempDir())
	require.Regexp(t, `^revsk: revsk cannot run here: cgroup2: /\S+ is another file system$`, r.fails(exitNotSupported))
	require.Regexp(t, `(?m)^cgroup2 +no, required `, r.stdout)
}

func TestProbesTellWhatDoesNotExist(t *testing.T) {
	require.ErrorIs(t, probeIterator("revsk_no_such_iterator"), errMissing)
	require.ErrorIs(t, probeKernelFunction("revsk_no_such_function"), errMissing)
	require.ErrorIs(t, probeFile("/proc/no_such_file"), errMissing)
	require.Error(t, probeBPFFS(t.TempDir()))
}

func TestMissingFeaturesAreReported(t *testing.T) {
	doc := featuresDocument{api.Features{Features: []api.Feature{
		{Name: "a", Available: true, Required: true},
		{Name: "b", Since: "5.8"},
	}}}
	require.NoError(t, doc.err())
	doc.Features.Features[1].Required = true
	var exit exitError
	require.True(t, errors.As(doc.err(), &exit))
	require.Equal(t, exitNotSupported, exit.code)
	require.EqualError(t, doc.err(), "revsk cannot run here: the kernel has no b (since: 5.8)")
}
