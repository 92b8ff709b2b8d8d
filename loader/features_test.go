// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

func features(t *testing.T) loader.Features {
	t.Helper()
	dp, err := loader.Open(options())
	require.NoError(t, err)
	defer dp.Close()
	return status(t, dp).Features
}

func TestFeaturesAreKeptAndChangeOnlyWhenAsked(t *testing.T) {
	cleanUp(t)
	want := loader.DefaultFeatures()
	want.HostNetnsOnly, want.NodePort = true, false
	first := options()
	first.Features = &want
	mustLoad(t, first)
	require.Equal(t, want, features(t))

	s := mustLoad(t, options())
	require.Equal(t, want, s.Features)
	require.Empty(t, s.Problems)
	require.Empty(t, attached(t)[ebpf.AttachCGroupInet4PostBind], "no feature needs it")

	change := options()
	change.ChangeFeatures = func(f *loader.Features) { f.L7 = false }
	want.L7 = false
	plan, err := loader.PlanLoad(t.Context(), change)
	require.NoError(t, err)
	require.Contains(t, plan, loader.Change{Action: loader.ActionSet, Object: "l7=false"})
	require.True(t, features(t).L7, "a plan changes nothing")
	mustLoad(t, change)
	require.Equal(t, want, features(t))

	require.NoError(t, loader.Unload(t.Context(), options(), false))
	mustLoad(t, options())
	require.Equal(t, want, features(t))

	require.NoError(t, loader.Unload(t.Context(), options(), true))
	mustLoad(t, options())
	require.Equal(t, loader.DefaultFeatures(), features(t))
}

func TestALoadThatFailsLeavesTheFeatures(t *testing.T) {
	load(t, options())
	injected := errors.New("injected")
	change := options()
	change.ChangeFeatures = func(f *loader.Features) { f.HostNetnsOnly = true }
	ctx := t.Context()
	for _, at := range []string{"attach revsk_connect4", "keep the features"} {
		requireRefused(t, injected, func() error {
			_, err := loader.Load(ctx, change.WithStep(func(step string) error {
				if step == at {
					return injected
				}
				return nil
			}))
			return err
		})
		require.Equal(t, loader.DefaultFeatures(), features(t))
	}
}

func TestFeaturesThatAChangeMakesMeaninglessAreRefused(t *testing.T) {
	load(t, options())
	change := options()
	change.ChangeFeatures = func(f *loader.Features) { f.IPv4, f.IPv6 = false, false }
	requireRefused(t, loader.ErrInvalid, func() error { return loadAndClose(t, change) })
}
