// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/passprog"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// follow runs the commands that mend a problem.
func (p place) follow(mend string) {
	p.t.Helper()
	require.NotEmpty(p.t, mend)
	for line := range strings.SplitSeq(mend, " && ") {
		words := strings.Fields(line)
		switch {
		case words[0] != "revsk":
			out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
			require.NoError(p.t, err, "%s: %s", line, out)
		case words[1] == "load":
			p.load(append(words[2:], "--quiet")...).ok()
		default:
			p.run(append(words[1:], "--quiet")...).ok()
		}
	}
}

func (p place) problems() map[string]loader.Problem {
	p.t.Helper()
	var doc statusDocument
	p.run("status", "--compare", "-o", "json").json(&doc)
	all := make(map[string]loader.Problem)
	for _, problem := range doc.Problems {
		all[problem.Code] = problem
	}
	return all
}

// What status says mends a problem does so.
func TestTheAdviceOfEachProblemMendsIt(t *testing.T) {
	takenOver := func(t *testing.T, p place) string {
		_, links := otherAgent(t, p)
		p.load("--takeover", "--quiet").ok()
		return links
	}
	for code, arrange := range map[string]func(t *testing.T, p place){
		loader.ProblemNotAttached: func(_ *testing.T, p place) {
			p.load("--quiet").ok()
			p.run("unload").ok()
		},
		loader.ProblemHooksMissing: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			unpin(t, p, "connect4")
		},
		loader.ProblemTakenBack: func(t *testing.T, p place) {
			links := takenOver(t, p)
			require.NoError(t, unattached(t, p).Update(links))
		},
		loader.ProblemBeside: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			otherAgent(t, p)
		},
		loader.ProblemMapMissing: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			require.NoError(t, os.Remove(filepath.Join(p.maps(), "cilium_lb4_services_v2")))
		},
		loader.ProblemMapReplaced: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			require.NoError(t, os.Remove(filepath.Join(p.maps(), "cilium_lb4_services_v2")))
			out, err := exec.Command("bpftool", "map", "create", filepath.Join(p.maps(), "cilium_lb4_services_v2"), "type", "hash",
				"key", "12", "value", "12", "entries", "100", "name", "cilium_lb4_serv", "flags", "1").CombinedOutput()
			require.NoError(t, err, "%s", out)
		},
		loader.ProblemLinkUnpinned: func(t *testing.T, p place) {
			takenOver(t, p) // the agent's pins keep the links
			require.NoError(t, os.RemoveAll(filepath.Join(p.pins(), "links")))
		},
		loader.ProblemLinkDetached: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			l, err := link.LoadPinnedLink(filepath.Join(p.pins(), "links", "revsk_connect4"), nil)
			require.NoError(t, err)
			defer l.Close()
			require.NoError(t, l.Detach())
		},
		loader.ProblemForeign: func(t *testing.T, p place) {
			p.load("--quiet").ok()
			putForeignProgram(t, p)
		},
		loader.ProblemModeDual: func(t *testing.T, p place) {
			p.load("--mode", "dual", "--quiet").ok()
			before := time.Now().Add(-2 * time.Hour)
			require.NoError(t, os.Chtimes(filepath.Join(p.pins(), "revsk_config"), before, before))
		},
		loader.ProblemHashLacks: func(t *testing.T, p place) {
			takenOver(t, p)
			connectUDP(t, p)
			hash := node{place: p}.hash()
			key, err := hash.NextKeyBytes(nil)
			require.NoError(t, err)
			require.NoError(t, hash.Delete(key))
		},
		loader.ProblemHashFull: func(t *testing.T, p place) {
			takenOver(t, p)
			n := node{place: p}
			for cookie := uint64(1 << 60); n.entries() < 1024*85/100; cookie++ {
				n.putEntry(cookie, "192.0.2.200:53", "192.0.2.1:53")
			}
		},
	} {
		t.Run(code, func(t *testing.T) {
			p := newPlace(t)
			arrange(t, p)
			problem, ok := p.problems()[code]
			require.True(t, ok, "%v", p.problems())
			p.follow(problem.Mend)
			require.NotContains(t, p.problems(), code)
		})
	}
}

// What another agent's programs need is given back where the agent is off, and then there is no datapath.
func TestTheAdviceWhereTheAgentIsOff(t *testing.T) {
	p := newPlace(t)
	_, links := otherAgent(t, p)
	p.load("--takeover", "--quiet").ok()
	require.NoError(t, os.RemoveAll(links))
	problem := p.problems()[loader.ProblemAgentOff]
	require.Equal(t, "revsk unload --hand-back", problem.Mend)
	p.follow(problem.Mend)
	require.NoDirExists(t, p.pins())
}

// The cgroup is one that the test may remove.
func TestTheAdviceWhereTheCgroupWasMadeAgain(t *testing.T) {
	p := newPlace(t)
	cgroup := filepath.Join(sandbox.Cgroup(), "removed")
	require.NoError(t, os.Mkdir(cgroup, 0o700))
	t.Cleanup(func() { require.NoError(t, os.Remove(cgroup)) })
	on := func(args ...string) result { return p.run(append(args, "--cgroup", cgroup)...) }
	on("load", "--legacy-entries", "1024", "--quiet").ok()
	enter := func(cgroup string) {
		require.NoError(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0))
	}
	enter(cgroup)
	s := connectUDP(t, p)
	enter(sandbox.Cgroup())
	require.NoError(t, os.Remove(cgroup))
	require.NoError(t, os.Mkdir(cgroup, 0o700))
	require.Regexp(t, "was removed and made again: .*: run revsk load$", on("status").fails(exitPartly))
	on("load", "--quiet").ok()
	on("status").ok()
	require.Equal(t, serviceAddr, s.peer(t))
	on("unload", "--purge", "--quiet").ok()
}

// putForeignProgram puts a program into a link of ours that has nothing to do with either agent.
func putForeignProgram(t *testing.T, p place) {
	t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(p.pins(), "links", "revsk_connect4"), nil)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, l.Update(passprog.Connect4(t)))
}

// What every command says of a foreign program in a link of ours, which stays there.
func TestTheAdviceWhereALinkHoldsAForeignProgram(t *testing.T) {
	p := newPlace(t)
	p.load("--quiet").ok()
	putForeignProgram(t, p)
	require.Regexp(t, `somebody has put policy \(program \d+\) into the link .*: run bpftool link detach pinned \S+ && revsk load$`, p.run("status").fails(exitPartly))
	require.Contains(t, p.run("status").stdout, "missing: connect4")
	for _, args := range [][]string{{"load"}, {"load", "--takeover"}, {"load", "--dry-run"}} {
		require.Regexp(t, `policy \(program \d+\) is in the link `, p.run(args...).fails(exitFailed), "%v", args)
	}
	p.run("mode", "dual").ok()
	for _, args := range [][]string{{"migrate"}, {"rollback"}} {
		require.Regexp(t, "revsk_connect4: run revsk load, which attaches them$", p.run(args...).fails(exitFailed), "%v", args)
	}
	left := p.run("unload", "--purge")
	require.Regexp(t, `left alone: \S+/links/revsk_connect4, which holds policy `, left.stderr)
	require.Equal(t, 0, left.code)
	link := filepath.Join(p.pins(), "links", "revsk_connect4")
	require.Regexp(t, `policy \(program \d+\) is in the link `, p.load().fails(exitFailed))
	p.follow("bpftool link detach pinned " + link)
	p.load("--quiet").ok()
	p.run("status").ok()
}

// Where there is nothing to run, the message says what to do.
func TestTheAdviceOfProblemsWithoutACommand(t *testing.T) {
	t.Run("a datapath on the cgroup above", func(t *testing.T) {
		p := newPlace(t)
		cgroup := filepath.Join(sandbox.Cgroup(), "below")
		require.NoError(t, os.Mkdir(cgroup, 0o700))
		t.Cleanup(func() { require.NoError(t, os.Remove(cgroup)) })
		p.load("--quiet").ok()
		require.Regexp(t, "another datapath runs on the same sockets: .* on "+sandbox.Cgroup()+": use the --pins with which it was loaded, or unload it first$",
			p.run("load", "--cgroup", cgroup, "--pins", p.pins()+"-below").fails(exitFailed))
		p.run("unload", "--purge", "--quiet").ok()
		p.run("load", "--cgroup", cgroup, "--pins", p.pins()+"-below", "--quiet").ok()
		p.run("unload", "--purge", "--pins", p.pins()+"-below", "--cgroup", cgroup, "--quiet").ok()
	})
	t.Run("a directory that others can write to", func(t *testing.T) {
		p := newPlace(t)
		p.load("--quiet").ok()
		require.NoError(t, os.Chmod(p.pins(), 0o777))
		require.Contains(t, p.problems(), loader.ProblemUnsafeDir)
		require.Regexp(t, "directory is not safe: its mode is 0777: have root own it and nobody else write to it, or name other pins with --pins$",
			p.load().fails(exitFailed))
		require.NoError(t, os.Chmod(p.pins(), 0o700))
		require.NotContains(t, p.problems(), loader.ProblemUnsafeDir)
		p.load("--quiet").ok()
	})
}

// An audit of a node with another agent's programs names the command that is not refused there.
func TestAuditOfAnAgentsNodeSaysToTakeOver(t *testing.T) {
	p := newPlace(t)
	a, err := reference.Hash(p.maps())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	require.NoError(t, a.Link(sandbox.Cgroup(), filepath.Join(p.dir, "links")))
	n := node{place: p}
	p.run("service", "add", "192.0.2.1:53/udp", "--backend", "127.0.0.1:5353").ok()
	n.putEntry(1<<60, "192.0.2.200:53", "192.0.2.1:53")
	require.Regexp(t, `ends in +mode mirror`, p.run("migrate", "--dry-run").ok().stdout)
	require.Regexp(t, `Next: revsk load --takeover, `, p.run("migrate", "--dry-run").ok().stdout)
}
