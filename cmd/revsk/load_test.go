// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// replace does so with regular expressions, in their order.
func replace(text string, pairs ...string) string {
	for pair := range slices.Chunk(pairs, 2) {
		text = regexp.MustCompile(pair[0]).ReplaceAllString(text, pair[1])
	}
	return text
}

// stable replaces what differs from one run to the next.
func stable(p place, text string) string {
	return replace(text,
		regexp.QuoteMeta(sandbox.Cgroup()), "CGROUP",
		regexp.QuoteMeta(p.dir), "BPFFS",
		regexp.QuoteMeta(kernelRelease()), "KERNEL",
		`(?m)^(\w+ +)[0-9]+ +[0-9a-f]{16}  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "${1}ID  TAG  TIME",
		`HOOK +PROGRAM ID +TAG +LOADED( +)?`, `HOOK          PROGRAM ID  TAG  LOADED$1`,
		`TIME +(cil_\w+) \(\d+, link\)`, "TIME  $1 (ID, link)",
		`LOADED +TAKEN`, "LOADED  TAKEN",
		`"program_id": \d+`, `"program_id": 1`,
		`"loaded_by": "[^"]+"`, `"loaded_by": "VERSION"`,
		`(?m)^(loaded by revsk +).*`, "${1}VERSION",
		`"tag": "[0-9a-f]{16}"`, `"tag": "TAG"`,
		`"loaded_at": "[^"]+"`, `"loaded_at": "TIME"`,
	)
}

func TestLoadPrintsWhatRunsAfterwards(t *testing.T) {
	p := newPlace(t)
	loaded := p.load().ok().stdout
	require.Equal(t, loaded, p.run("status").ok().stdout)
	require.LessOrEqual(t, strings.Count(loaded, "\n"), 24, "it fits on a screen")
	golden(t, "status.txt", stable(p, loaded))
	golden(t, "status-wide.txt", stable(p, p.run("status", "-o", "wide").ok().stdout))
	golden(t, "status.json", stable(p, p.run("status", "-o", "json").ok().stdout))
}

func TestLoadAgainReplaces(t *testing.T) {
	p := newPlace(t)
	var first, second api.Changes
	p.load("-o", "json").ok().json(&first)
	require.Equal(t, "revsk/changes/v1", first.Schema)
	require.False(t, first.DryRun)
	require.True(t, first.Status.Complete)
	require.True(t, changes(first.Changes).has(loader.ActionAttach))
	require.False(t, changes(first.Changes).has(loader.ActionReplace))
	p.load("-o", "json").ok().json(&second)
	require.False(t, changes(second.Changes).has(loader.ActionCreate))
	require.False(t, changes(second.Changes).has(loader.ActionAttach))
	require.True(t, changes(second.Changes).has(loader.ActionReplace))
}

func TestLoadQuietPrintsNothing(t *testing.T) {
	require.Empty(t, newPlace(t).load("--quiet").ok().stdout)
}

func TestDryRunOfLoadSaysWhatLoadDoes(t *testing.T) {
	p := newPlace(t)
	for _, situation := range []string{"first", "again", "after unload"} {
		before := state(t, p)
		var plan, done api.Changes
		p.load("--dry-run", "-o", "json").ok().json(&plan)
		require.True(t, plan.DryRun)
		require.Nil(t, plan.Status)
		text := p.load("--dry-run").ok().stdout
		require.Equal(t, before, state(t, p), situation)
		require.Equal(t, len(plan.Changes), strings.Count(text, "would "))

		p.load("-o", "json").ok().json(&done)
		require.Equal(t, plan.Changes, done.Changes, situation)
		if situation == "again" {
			p.run("unload").ok()
		}
	}
}

func TestDryRunPlanText(t *testing.T) {
	p := newPlace(t)
	golden(t, "load-dry-run.txt", stable(p, p.load("--dry-run").ok().stdout))
}

func TestLoadModeIsThatAskedFor(t *testing.T) {
	p := newPlace(t)
	p.load("--mode", "dual").ok()
	require.Equal(t, "dual\n", p.run("mode").ok().stdout)
	p.load().ok()
	require.Equal(t, "dual\n", p.run("mode").ok().stdout)
	p.load("--mode", "storage").ok()
	require.Equal(t, "storage\n", p.run("mode").ok().stdout)
}

func TestLoadSizesAreThoseOfTheFlags(t *testing.T) {
	p := newPlace(t)
	p.run("load", "--legacy-entries", "123").ok()
	var status statusDocument
	p.run("status", "-o", "json").ok().json(&status)
	sizes := make(map[string]uint32)
	for _, m := range status.Maps {
		sizes[m.Name] = m.MaxEntries
	}
	require.Equal(t, uint32(123), sizes["cilium_lb4_reverse_sk"])
	require.Equal(t, uint32(123), sizes["cilium_lb6_reverse_sk"])
}

// A Features field without a flag, or with a flag that sets another, is noticed here.
func TestEveryFeatureHasItsFlag(t *testing.T) {
	changed := make(map[string]string) // field: flags that change it
	var defaults loader.Features
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	addFeatureFlags(flags, &defaults)
	flags.VisitAll(func(flag *pflag.Flag) {
		var f loader.Features
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		addFeatureFlags(flags, &f)
		value := "true"
		switch flag.Value.Type() {
		case "range":
			value = "1-2"
		case "uint32", "uint64":
			value = "1"
		}
		require.NoError(t, flags.Set(flag.Name, value))
		for field, v := range reflect.ValueOf(f).Fields() {
			if !v.IsZero() {
				changed[field.Name] += flag.Name
			}
		}
	})
	want := map[string]string{"NodePortMin": "nodeport-range", "NodePortMax": "nodeport-range"}
	for field := range reflect.TypeFor[loader.Features]().Fields() {
		flag, ok := want[field.Name]
		if !ok {
			flag = strings.ReplaceAll(changed[field.Name], "-", "")
			require.Equal(t, strings.ToLower(field.Name), flag)
			continue
		}
		require.Equal(t, flag, changed[field.Name])
	}
	require.Len(t, changed, reflect.TypeFor[loader.Features]().NumField())
}

func TestFeatureFlagsReachThePrograms(t *testing.T) {
	p := newPlace(t)
	p.load("--nodeport=false", "--health-check").ok()
	var status statusDocument
	p.run("status", "-o", "json").ok().json(&status)
	attached := make(map[string]bool)
	for _, h := range status.Hooks {
		attached[h.Program] = h.Attached
	}
	require.False(t, attached["revsk_post_bind4"])
	require.True(t, attached["revsk_bind4"])
}

func TestLoadWaitsForTheLock(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	dir, err := os.Open(p.pins())
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	before := state(t, p)

	require.Equal(t, "revsk: "+p.pins()+": locked by another process: "+
		"wait for the other revsk or agent to finish, or use --wait", p.load().fails(exitFailed))
	p.run("load", "--wait", "100ms").fails(exitFailed)
	p.run("mode", "dual").fails(exitFailed)
	p.run("unload").fails(exitFailed)
	require.Equal(t, before, state(t, p))

	release := time.AfterFunc(300*time.Millisecond, func() { _ = unix.Flock(int(dir.Fd()), unix.LOCK_UN) })
	defer release.Stop()
	p.load("--wait", "1m").ok()
}

func TestALoadThatHasEndedHalfWay(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	p.run("unload").ok()
	require.NoError(t, os.Remove(filepath.Join(p.pins(), "revsk_metrics")))
	for _, line := range []string{"mode", "mode dual", "migrate", "rollback", "list", "status"} {
		require.Equal(t, "revsk: "+p.pins()+": not loaded: a load or an unload has ended half way: "+
			"run revsk load first, or name the place with --bpffs or --pins", p.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	p.load().ok()
	p.run("mode", "dual").ok()
}

func TestStatusOfHooksThatAreMissing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	l, err := link.LoadPinnedLink(filepath.Join(p.pins(), "links", "revsk_connect4"), nil)
	require.NoError(t, err)
	require.NoError(t, errors.Join(l.Detach(), l.Unpin(), l.Close()))
	require.Regexp(t, `(?m)^hooks +10 attached, 2 off, missing: connect4$`, p.run("status").stdout)
	r := p.run("status", "-o", "wide")
	require.Equal(t, "revsk: not attached: connect4: run revsk load", r.fails(exitPartly))
	require.Regexp(t, `(?m)^connect4 +missing$`, r.stdout)
	require.Regexp(t, `(?m)^hooks-missing +revsk load$`, r.stdout)

	p.run("unload").ok()
	r = p.run("status", "-o", "json")
	require.Equal(t, "revsk: no hook is attached: run revsk load", r.fails(exitPartly))
	var status statusDocument
	r.json(&status)
	require.False(t, status.Complete)
}

func TestPinsElsewhere(t *testing.T) {
	p := newPlace(t)
	pins, globals := filepath.Join(p.dir, "a"), filepath.Join(p.dir, "b")
	at := []string{"--pins", pins, "--maps", globals}
	p.load(at...).ok()
	require.NoDirExists(t, p.pins())
	require.FileExists(t, filepath.Join(pins, "revsk_conn"))
	require.FileExists(t, filepath.Join(globals, "cilium_lb4_services_v2"))
	p.run(append(at, "unload", "--purge")...).ok()
	require.NoDirExists(t, pins)
	require.Subset(t, slices.Collect(maps.Keys(state(t, p))), []string{globals})
}
