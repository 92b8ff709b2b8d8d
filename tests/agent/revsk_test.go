// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

var revskOptions = loader.Options{Cgroup: sandbox.Cgroup(), Takeover: true}

func takeOver(t *testing.T) {
	t.Helper()
	dp, err := loader.Load(t.Context(), revskOptions)
	require.NoError(t, err)
	defer dp.Close()
	status, err := dp.Status()
	require.NoError(t, err)
	require.True(t, status.Complete())
}

func migrateTo(t *testing.T, mode loader.Mode) {
	t.Helper()
	report, err := migrate.Run(t.Context(), migrate.Options{Loader: revskOptions, To: &mode})
	require.NoError(t, err)
	require.Equal(t, mode, report.Mode)
}

func currentMode(t *testing.T) loader.Mode {
	t.Helper()
	dp, err := loader.Open(revskOptions)
	require.NoError(t, err)
	defer dp.Close()
	mode, err := dp.Mode()
	require.NoError(t, err)
	return mode
}

// revsk takes over from the agent, which restarts: its programs are in the links again. revsk takes over once
// more. Sockets of all kinds ask all the time, and new ones are opened.
func TestRestartBesideRevsk(t *testing.T) {
	for _, test := range []struct {
		mode loader.Mode
		// enter takes the datapath to the mode, from mode dual.
		enter func(t *testing.T)
		// forgotten: the mode does not keep the agent's hash, so its programs know neither sockets that
		// were moved nor those that were opened meanwhile.
		forgotten bool
	}{
		{loader.ModeDual, func(*testing.T) {}, false},
		{loader.ModeMirror, func(t *testing.T) { migrateTo(t, loader.ModeMirror) }, false},
		{loader.ModeStorage, func(t *testing.T) { migrateTo(t, loader.ModeStorage) }, true},
	} {
		t.Run(test.mode.String(), func(t *testing.T) {
			begin(t, usual)
			t.Cleanup(func() {
				opts := revskOptions
				opts.Force = true
				if err := loader.Unload(t.Context(), opts, true); !errors.Is(err, loader.ErrNotLoaded) {
					require.NoError(t, err)
				}
			})
			c := newCrowd(t)
			require.Zero(t, c.during("the agent's programs", func() {}))
			require.Zero(t, c.during("taken over", func() { takeOver(t) }))
			require.Zero(t, c.during("in mode "+test.mode.String(), func() { test.enter(t) }))
			require.Equal(t, test.mode, currentMode(t))
			wrong := c.during("the agent restarted", func() { require.NoError(t, usual.start()) })
			if test.forgotten {
				require.NotZero(t, wrong, "the hash has no entries of these sockets")
			} else {
				require.Zero(t, wrong)
			}
			wrong = c.during("taken over again", func() { takeOver(t) })
			require.True(t, test.forgotten || wrong == 0, "until our hooks are back")
			require.Equal(t, loader.ModeDual, currentMode(t))
			require.Zero(t, c.during("from then on", func() {}))
			require.Zero(t, c.during("in mode mirror", func() { migrateTo(t, loader.ModeMirror) }))
			require.Zero(t, c.during("the agent restarted once more", func() { require.NoError(t, usual.start()) }))
			require.Zero(t, c.during("taken over for the third time", func() { takeOver(t); migrateTo(t, loader.ModeMirror) }))
			require.Zero(t, c.during("handed back", func() { require.NoError(t, loader.HandBack(t.Context(), revskOptions)) }))
		})
	}
}
