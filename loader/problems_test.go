// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const testCgroup = "/cgroup/here"

// nothingThere is a node on which nothing was loaded yet.
func nothingThere() *observation {
	o := &observation{
		opts: Options{Cgroup: testCgroup, PinsDir: "/bpf/revsk", MapsDir: "/bpf/maps"},
		dirs: make(map[string][]string), hashes: make(map[ebpf.MapID]string),
	}
	for _, h := range hooks {
		o.hooks = append(o.hooks, hookState{hook: h})
	}
	for _, name := range []string{mapReverse4, mapReverse6, "cilium_lb4_services_v2", mapConfig, mapConn} {
		o.maps = append(o.maps, mapState{name: name, pin: o.opts.pinPath(name)})
	}
	return o
}

// observed is a datapath where everything is as it has to be.
func observed() *observation {
	o := nothingThere()
	f := DefaultFeatures()
	o.kept, o.opts.Features, o.loaded = &keptState{Features: f}, &f, true
	o.dirs[o.opts.PinsDir], o.dirs[o.opts.MapsDir] = []string{"links", mapConfig, mapConn, mapFeatures}, []string{}
	o.dirs[o.opts.linksDir()] = []string{}
	for i := range o.hooks {
		if h := &o.hooks[i]; h.isWanted(&f) {
			p := program{id: ebpf.ProgramID(100 + i), name: kept(h.program)}
			h.pin = linkState{path: o.opts.linkPath(h.hook), id: link.ID(200 + i), program: p.id, live: true}
			h.on = []attachment{{program: p, cgroup: testCgroup, link: h.pin.id}}
			o.dirs[o.opts.linksDir()] = append(o.dirs[o.opts.linksDir()], h.program)
		}
	}
	for i := range o.maps {
		s := &o.maps[i]
		s.pinned = ebpf.MapID(10 + i)
		s.used = []mapUse{{id: s.pinned, own: true}}
	}
	return o
}

func (o *observation) at(program string) *hookState {
	i := slices.IndexFunc(o.hooks, func(h hookState) bool { return h.program == program })
	return &o.hooks[i]
}

// each does something to every hook that has a program of ours.
func (o *observation) each(f func(*hookState)) {
	for i := range o.hooks {
		if h := &o.hooks[i]; h.ours() {
			f(h)
		}
	}
}

// theirs is a program of another agent's.
func (o *observation) theirs(h *hookState) attachment {
	hash := o.mapNamed(mapReverse4).pinned
	o.hashes[hash] = mapReverse4
	return attachment{program: program{id: 7, name: kept(h.reference), maps: []ebpf.MapID{hash}}, cgroup: testCgroup, flags: unix.BPF_F_ALLOW_MULTI}
}

// takeBack is what an agent does that restarts.
func (o *observation) takeBack(h *hookState) {
	h.saved = program{id: 6, name: kept(h.reference)}
	h.on = []attachment{o.theirs(h)}
	h.on[0].link, h.pin.program = h.pin.id, 7
}

func TestProblems(t *testing.T) {
	type problem struct{ code, mend string }
	for name, test := range map[string]struct {
		is   func(*observation)
		want []problem
	}{
		"all is well": {func(*observation) {}, nil},
		"nothing is attached": {func(o *observation) {
			for i := range o.hooks {
				o.hooks[i] = hookState{hook: o.hooks[i].hook}
			}
		}, []problem{{ProblemNotAttached, "revsk load"}}},
		"a hook is missing": {func(o *observation) {
			h := o.at("revsk_connect4")
			h.pin, h.on = linkState{}, nil
		}, []problem{{ProblemHooksMissing, "revsk load"}}},
		"a link that only a feature needs is detached": {func(o *observation) {
			h := o.at("revsk_post_bind4")
			h.pin.live, h.on = false, nil
		}, []problem{{ProblemLinkDetached, "revsk load"}}},
		"the cgroup was removed and made again": {func(o *observation) {
			o.each(func(h *hookState) { h.pin.live, h.pin.removed, h.on = false, true, nil })
		}, []problem{{ProblemCgroupRemoved, "revsk load"}}},
		"the agent has its hooks back": {func(o *observation) {
			o.each(o.takeBack)
		}, []problem{{ProblemTakenBack, "revsk load --takeover"}}},
		"the agent has some of its hooks back": {func(o *observation) {
			o.takeBack(o.at("revsk_release"))
		}, []problem{{ProblemTakenBack, "revsk load --takeover"}}},
		"the agent runs beside ours": {func(o *observation) {
			h := o.at("revsk_connect4")
			h.on = append(h.on, o.theirs(h))
		}, []problem{{ProblemBeside, "revsk load --takeover"}}},
		"the agent runs beside ours on a node that was taken over": {func(o *observation) {
			h := o.at("revsk_connect4")
			h.saved = program{id: 6}
			h.on = append(h.on, o.theirs(h))
		}, []problem{{ProblemBeside, "revsk load --takeover"}}},
		"another datapath above and below": {func(o *observation) {
			other := program{id: 9, name: "revsk_connect4"}
			o.at("revsk_connect4").around = []attachment{{program: other, cgroup: "/cgroup"}, {program: other, cgroup: testCgroup + "/below"}}
		}, []problem{{ProblemBeside, ""}, {ProblemBeside, ""}}},
		"the pin of a map is gone": {func(o *observation) {
			o.mapNamed("cilium_lb4_services_v2").pinned = 0
		}, []problem{{ProblemMapMissing, "bpftool map pin id 12 /bpf/maps/cilium_lb4_services_v2"}}},
		"the control plane has made a map anew": {func(o *observation) {
			o.mapNamed("cilium_lb4_services_v2").pinned = 99
		}, []problem{{ProblemMapReplaced, "revsk load"}}},
		"the hash is almost full": {func(o *observation) {
			o.mode, o.maps[0].entries, o.maps[0].size = ModeDual, 80, 100
		}, []problem{{ProblemHashFull, "revsk migrate"}}},
		"the hash is not full": {func(o *observation) {
			o.mode, o.maps[0].entries, o.maps[0].size = ModeDual, 79, 100
		}, nil},
		"nobody uses the hash that is full": {func(o *observation) {
			o.mode, o.maps[0].entries, o.maps[0].size = ModeStorage, 100, 100
		}, nil},
		"a migration has not ended": {func(o *observation) {
			o.mode, o.modeFor = ModeDual, 2*time.Hour
		}, []problem{{ProblemModeDual, "revsk migrate"}}},
		"a migration takes a while": {func(o *observation) {
			o.mode, o.modeFor, o.changing = ModeDual, 2*time.Hour, true
		}, nil},
		"the agent is off": {func(o *observation) {
			o.mode, o.kept.AgentLinks = ModeMirror, "/bpf/cilium"
			o.each(func(h *hookState) { h.saved = program{id: 6} })
		}, []problem{{ProblemAgentOff, "revsk unload --hand-back"}}},
		"the agent's links are where they were": {func(o *observation) {
			o.mode, o.kept.AgentLinks = ModeMirror, "/bpf/cilium"
			o.each(func(h *hookState) { h.saved, h.agentPin.id = program{id: 6}, h.pin.id })
		}, nil},
		"the agent never pinned its links": {func(o *observation) {
			o.each(func(h *hookState) { h.saved = program{id: 6} })
		}, nil},
		"in a container": {func(o *observation) { o.namespaced = true }, []problem{{ProblemNotRoot, ""}}},
		"others could write to a directory": {func(o *observation) {
			o.unsafe = ErrUnsafeDir
		}, []problem{{ProblemUnsafeDir, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			o := observed()
			test.is(o)
			var found []problem
			for _, p := range o.problems() {
				require.Equal(t, o.changing, p.Passes)
				require.NotEmpty(t, p.Text)
				require.NotContains(t, p.Text, "\n")
				found = append(found, problem{p.Code, p.Mend})
			}
			require.Equal(t, test.want, found)
			// What mends it is not refused.
			for _, p := range found {
				if p.mend == "revsk load" || p.mend == takeOverCommand {
					o.opts.Takeover = p.mend == takeOverCommand
					steps, _, err := planLoad(o)
					require.NoError(t, err)
					require.NotEmpty(t, steps)
				}
			}
		})
	}
}

// While another process changes the datapath, it may be about to mend it.
func TestProblemsMayPassWhileAnotherProcessChangesTheDatapath(t *testing.T) {
	o := observed()
	o.changing = true
	o.at("revsk_connect4").pin = linkState{}
	o.at("revsk_connect4").on = nil
	all := o.problems()
	require.Len(t, all, 1)
	require.True(t, all[0].Passes)
}
