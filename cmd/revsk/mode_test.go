// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

func TestModeShowsAndSwitches(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
	var shown api.Mode
	p.run("mode", "-o", "json").ok().json(&shown)
	require.Equal(t, loader.ModeStorage, shown.Mode)
	require.Equal(t, "switched from mode storage to dual\n", p.run("mode", "dual").ok().stdout)
	require.Equal(t, "mode is dual already\n", p.run("mode", "dual").ok().stdout)
	require.Empty(t, p.run("mode", "storage", "--quiet").ok().stdout)
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
	var done api.Changes
	p.run("mode", "legacy", "-o", "json").ok().json(&done)
	require.Equal(t, []loader.Change{{Action: "switch", Object: "legacy"}}, done.Changes)
}

func TestDryRunOfModeChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	before := state(t, p)
	require.Equal(t, "would switch to mode legacy\n", p.run("mode", "legacy", "--dry-run").ok().stdout)
	require.Equal(t, "nothing to do\n", p.run("mode", "storage", "--dry-run").ok().stdout)
	require.Equal(t, before, state(t, p))
}

func TestModeThatWouldForgetLiveSocketsNeedsForce(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	connectUDP(t, p)
	message := "revsk: live sockets would lose their service: tuples on sockets only: 1: " +
		"run revsk migrate for mode storage or mirror, or revsk rollback for mode legacy, which move what live sockets need; " +
		"with --force those sockets lose their service"
	require.Equal(t, message, p.run("mode", "legacy").fails(exitFailed))
	require.Equal(t, message, p.run("mode", "legacy", "--dry-run").fails(exitFailed))
	require.Equal(t, message, p.load("--mode", "legacy").fails(exitFailed))
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
	p.run("mode", "legacy", "--force").ok()
	require.Equal(t, "legacy\n", p.run("mode").ok().stdout)
}

// Entries that no socket has any more stay for ever: to wait for the end of sockets would not help, but a migration does.
func TestModeStorageOverALeakedHashAdvisesAMigration(t *testing.T) {
	p := newPlace(t)
	p.load("--mode", "legacy").ok()
	hash, err := ebpf.LoadPinnedMap(filepath.Join(p.maps(), lbmap.ReverseSK4Map), nil)
	require.NoError(t, err)
	defer hash.Close()
	for i := range byte(20) {
		require.NoError(t, hash.Put([16]byte{0xff, i, 12: 10, 14: 53}, [8]byte{10, 96, 0, 1, 53}))
	}
	p.run("mode", "dual").ok()
	refusal := p.run("mode", "storage").fails(exitFailed)
	require.Contains(t, refusal, "run revsk migrate")
	require.NotContains(t, refusal, "until")
	p.run("migrate").ok()
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
}
