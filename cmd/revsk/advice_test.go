// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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
	p.run("status", "-o", "json").json(&doc)
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
			require.NoError(t, os.Remove(filepath.Join(p.pins(), "links", "revsk_connect4")))
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
