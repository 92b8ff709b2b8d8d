// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/loader"
)

// descriptors lists what the process has open, without the runtime's own.
func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var open []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || filepath.Dir(target) == "/proc/"+e.Name() {
			continue // the directory that was just read
		}
		switch target {
		case "anon_inode:[eventpoll]", "anon_inode:[eventfd]":
		default:
			open = append(open, target)
		}
	}
	slices.Sort(open)
	return open
}

// An agent loads at each of its starts, and asks for the status for as long as it runs.
func TestNoDescriptorIsLeftOpen(t *testing.T) {
	load(t, options()).Close()
	f := loader.DefaultFeatures()
	f.NodePort, f.HealthCheck = false, true
	other := options()
	other.Features = &f
	apart := onCgroup(below(t))
	apart.MapsDir += mapsDir + "-apart"
	injected := errors.New("injected")

	// A finalizer would close what was forgotten.
	t.Cleanup(func() { debug.SetGCPercent(100) })
	debug.SetGCPercent(-1)
	before := descriptors(t)
	for name, act := range map[string]func() error{
		"load":                  func() error { return loadAndClose(t, options()) },
		"load, other features":  func() error { return loadAndClose(t, other) },
		"plan of a load":        func() error { _, err := loader.PlanLoad(t.Context(), options()); return err },
		"load into another dir": func() error { return loadAndClose(t, apart) },
		"load that fails to attach": func() error {
			return wantError(t, injected, loadAndClose(t, options().WithStep(func(step string) error {
				if step == "attach revsk_sendmsg6" {
					return injected
				}
				return nil
			})))
		},
		"first load that fails to create a map": func() error {
			return wantError(t, injected, loadAndClose(t, apart.WithStep(func(step string) error {
				if step == "create map revsk_peers" {
					return injected
				}
				return nil
			})))
		},
		"a load that is refused": func() error {
			refused := options()
			refused.Cgroup = filepath.Dir(refused.Cgroup)
			return wantError(t, loader.ErrForeignLink, loadAndClose(t, refused))
		},
		"open, status and mode": func() error {
			dp, err := loader.Open(options())
			require.NoError(t, err)
			defer dp.Close()
			_, err = dp.Status()
			require.NoError(t, err)
			require.NoError(t, dp.SetMode(t.Context(), loader.ModeDual, false))
			return dp.SetMode(t.Context(), loader.ModeStorage, true)
		},
		"open what is not there": func() error {
			_, err := loader.Open(elsewhere())
			return wantError(t, loader.ErrNotLoaded, err)
		},
	} {
		require.NoError(t, act(), name)
		require.Equal(t, before, descriptors(t), name)
	}
	require.NoError(t, loader.Unload(t.Context(), options(), true))
	require.Equal(t, before, descriptors(t), "unload")
}

func loadAndClose(t *testing.T, opts loader.Options) error {
	t.Helper()
	dp, err := loader.Load(t.Context(), opts)
	if err != nil {
		return err
	}
	require.NoError(t, dp.Close())
	if opts.PinsDir != "" {
		require.NoError(t, loader.Unload(t.Context(), opts, true))
	}
	return nil
}

// elsewhere are the options of a second datapath on the same cgroup, which is refused beside the first.
func elsewhere() loader.Options {
	opts := options()
	opts.PinsDir = pinsDir + "-elsewhere"
	return opts
}

func wantError(t *testing.T, want, got error) error {
	t.Helper()
	require.ErrorIs(t, got, want)
	return nil
}
