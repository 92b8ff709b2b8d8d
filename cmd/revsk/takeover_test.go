// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// otherAgent starts another agent, which goes when the test ends, and returns the directory of its links.
func otherAgent(t *testing.T, p place) (a *reference.Agent, links string) {
	t.Helper()
	a = unattached(t, p)
	links = filepath.Join(p.dir, "cilium", "socketlb", "links", "cgroup")
	require.NoError(t, a.Link(sandbox.Cgroup(), links))
	return a, links
}

// unattached is another agent before it attaches its programs, which use the pinned hash.
func unattached(t *testing.T, p place) *reference.Agent {
	t.Helper()
	a, err := reference.IdleHash(p.maps(), 1024)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

const leftAlone = "left alone: cil_sock4_pre_bind, cil_sock6_pre_bind\n"

func TestTakeoverAndHandBack(t *testing.T) {
	p := newPlace(t)
	otherAgent(t, p)
	before := state(t, p)

	for _, line := range []string{"load", "load --dry-run"} {
		require.Regexp(t, `^revsk: revsk_recvmsg4 of .*: another agent's program is attached: cil_sock4_recvm \(program \d+\) would run beside it: `+
			"run revsk load --takeover to take over from it$",
			p.load(strings.Fields(line)[1:]...).fails(exitFailed))
		require.Equal(t, before, state(t, p))
	}

	var plan, done api.Changes
	p.load("--takeover", "--dry-run", "-o", "json").ok().json(&plan)
	golden(t, "takeover-dry-run.txt", stable(p, p.load("--takeover", "--dry-run").ok().stdout))
	require.Equal(t, before, state(t, p))

	p.load("--takeover", "-o", "json").ok().json(&done)
	require.Equal(t, plan.Changes, done.Changes)
	golden(t, "takeover-status.txt", stable(p, p.run("status").ok().stdout))

	r := p.load("--takeover")
	require.Equal(t, 0, r.code)
	require.Equal(t, leftAlone, r.stderr)
	require.Empty(t, p.load("--takeover", "--quiet").ok().stdout)

	taken := state(t, p)
	require.Equal(t, "revsk: "+p.pins()+": hooks were taken over from another agent: "+
		"use --hand-back to give them back, or --force to detach them", p.run("unload").fails(exitFailed))
	p.run("unload", "--hand-back", "--dry-run", "-o", "json").ok().json(&plan)
	golden(t, "hand-back-dry-run.txt", stable(p, p.run("unload", "--hand-back", "--dry-run").ok().stdout))
	require.Equal(t, taken, state(t, p))

	p.run("unload", "--hand-back", "-o", "json").ok().json(&done)
	require.Equal(t, plan.Changes, done.Changes)
	after := state(t, p)
	for name, what := range before {
		require.Equal(t, what, after[name], name)
	}
	require.NoDirExists(t, p.pins())
}

func TestHandBackSaysWhatItDid(t *testing.T) {
	p := newPlace(t)
	otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	require.Equal(t, "handed back 11 hooks of "+sandbox.Cgroup()+", removed "+p.pins()+"\n", p.run("unload", "--hand-back").ok().stdout)

	p.load("--takeover", "--quiet").ok()
	require.Empty(t, p.run("unload", "--hand-back", "--quiet").ok().stdout)
}

func TestHandBackOfNothingIsSaid(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	require.Equal(t, "revsk: "+p.pins()+": nothing was taken over: use revsk unload without --hand-back",
		p.run("unload", "--hand-back").fails(exitFailed))
	require.Equal(t, exitUsage, p.run("unload", "--hand-back", "--purge").code)
}

func TestNothingToTakeOverIsSaid(t *testing.T) {
	p := newPlace(t)
	before := state(t, p)
	for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
		require.Equal(t, "revsk: nothing to take over: no link in /nowhere, no program on "+sandbox.Cgroup()+": "+
			"run revsk load without --takeover",
			p.load("--takeover-links", "/nowhere", dryRun).fails(exitFailed))
	}
	require.Equal(t, before, state(t, p))
}

func TestHooksTakenBackAreSaid(t *testing.T) {
	p := newPlace(t)
	_, links := otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	again := unattached(t, p)
	require.NoError(t, again.Without("cil_sock_release", "cil_sock4_connect").Update(links))

	require.Regexp(t, "(?m)^hooks +2 attached \\(2 taken over\\), 2 off, taken back: recvmsg4 .* post_bind6$", p.run("status").stdout)
	r := p.run("status", "-o", "wide")
	require.Regexp(t, "^revsk: taken back by another agent: recvmsg4, .*, post_bind6: "+
		"run revsk load --takeover$", r.fails(exitPartly))
	require.Regexp(t, `(?m)^recvmsg4 +\d+, not ours +- +- +cil_sock4_recvmsg \(\d+, link\)$`, r.stdout)
	require.Regexp(t, `(?m)^release +\d+ +[0-9a-f]{16} .* cil_sock_release \(\d+, link\)$`, r.stdout)
	require.Regexp(t, `: hook was taken back by another agent: cil_sock4_recvm \(program \d+\): `+
		"run revsk load --takeover to take it over once more$", p.load().fails(exitFailed))

	for _, line := range []string{"list", "terminate --all-gone --dry-run"} {
		require.Contains(t, p.run(strings.Fields(line)...).stderr,
			"another agent's programs run on 9 hooks: what sockets hold may be outdated until revsk load --takeover\n", line)
	}

	r = p.run("unload", "--hand-back")
	require.Equal(t, 0, r.code)
	require.Equal(t, "handed back 2 hooks of "+sandbox.Cgroup()+", removed "+p.pins()+"\n", r.stdout)
	require.Regexp(t, "^left alone: cil_sock6_post_bind, .*, cil_sock4_recvmsg\n$", r.stderr)
}

// What sockets have got in mode storage, the programs that come back do not know.
func TestHandBackThatWouldForgetLiveSocketsNeedsForce(t *testing.T) {
	p := newPlace(t)
	otherAgent(t, p)
	p.load("--takeover", "--mode", "storage", "--quiet").ok()
	connectUDP(t, p)
	for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
		require.Regexp(t, "hash lacks what live sockets hold: 1 of them: run revsk rollback first",
			p.run("unload", "--hand-back", dryRun).fails(exitFailed))
	}
	p.run("unload", "--hand-back", "--force").ok()
}

// What the hash has evicted of it is put back.
func TestHandBackFromAModeWithTheHashRefillsIt(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeDual, loader.ModeMirror} {
		t.Run(mode.String(), func(t *testing.T) {
			p := newPlace(t)
			otherAgent(t, p)
			p.load("--takeover", "--mode", mode.String(), "--quiet").ok()
			connectUDP(t, p)
			hash := node{place: p}.hash()
			key, err := hash.NextKeyBytes(nil)
			require.NoError(t, err)
			require.NoError(t, hash.Delete(key))
			p.run("unload", "--hand-back", "--dry-run").ok()
			p.run("unload", "--hand-back").ok()
			_, err = hash.LookupBytes(key)
			require.NoError(t, err)
		})
	}
}

// A takeover, and what follows on it, is one command.
func TestTakeoverEndsInMirror(t *testing.T) {
	p := newPlace(t)
	otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	require.Equal(t, "mirror\n", p.run("mode").ok().stdout)
	p.run("migrate", "--to", "storage", "--quiet").ok()
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
	connectUDP(t, p)

	var report reportDocument
	p.run("migrate", "-o", "json").ok().json(&report)
	require.Equal(t, loader.ModeMirror, report.To)
	require.Equal(t, loader.ModeMirror, report.Mode)
	require.Equal(t, 1, report.Written)
	key, err := node{place: p}.hash().NextKeyBytes(nil)
	require.NoError(t, err)
	require.NotNil(t, key)
	require.Equal(t, exitUsage, p.run("migrate", "--to", "dual").code)
}

// The agent makes its hash anew with another size, and starts again. Ours go over to it, and it gets what sockets hold.
func TestHashThatTheAgentHasMadeAnewIsFilledFromSockets(t *testing.T) {
	p := newPlace(t)
	_, links := otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	s := connectUDP(t, p)
	for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
		require.NoError(t, os.Remove(filepath.Join(p.maps(), name)))
	}
	again, err := reference.IdleHash(p.maps(), 2048)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, again.Close()) })
	require.NoError(t, again.Update(links))

	p.load("--takeover", "--quiet").ok()
	require.Equal(t, "mirror\n", p.run("mode").ok().stdout)
	hash := node{place: p}.hash()
	require.EqualValues(t, 2048, hash.MaxEntries())
	key, err := hash.NextKeyBytes(nil)
	require.NoError(t, err)
	require.NotNil(t, key)
	require.Equal(t, serviceAddr, s.peer(t))
	p.run("unload", "--hand-back").ok()
}
