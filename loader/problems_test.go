// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

const testCgroup = "/cgroup/here"

// observed is a datapath where everything is as it has to be.
func observed() *observation {
	o := &observation{opts: Options{Cgroup: testCgroup, PinsDir: "/bpf/revsk", MapsDir: "/bpf/maps", Features: &Features{NodePort: true}}}
	for i, h := range hooks {
		ho := hookObservation{hook: h}
		if h.isWanted(o.opts.Features) {
			ho.link, ho.ours = true, true
			ho.own = occupant{id: ebpf.ProgramID(100 + i), name: kept(h.program)}
		}
		o.hooks = append(o.hooks, ho)
	}
	for i, name := range []string{mapReverse4, "cilium_lb4_services_v2", mapConn} {
		id := ebpf.MapID(10 + i)
		o.maps = append(o.maps, mapObservation{name: name, pin: o.opts.pinPath(name), pinned: id, used: []ebpf.MapID{id}})
	}
	return o
}

func (o *observation) at(program string) *hookObservation {
	i := slices.IndexFunc(o.hooks, func(ho hookObservation) bool { return ho.program == program })
	return &o.hooks[i]
}

func theirs(h hook) occupant { return occupant{id: 7, name: kept(h.reference)} }

func TestProblems(t *testing.T) {
	type problem struct{ code, mend string }
	for name, test := range map[string]struct {
		is   func(*observation)
		want []problem
	}{
		"all is well": {func(*observation) {}, nil},
		"nothing is attached": {func(o *observation) {
			for i := range o.hooks {
				o.hooks[i] = hookObservation{hook: o.hooks[i].hook}
			}
		}, []problem{{ProblemNotAttached, "revsk load"}}},
		"a hook is missing": {func(o *observation) {
			o.at("revsk_connect4").own, o.at("revsk_connect4").ours = occupant{}, false
		}, []problem{{ProblemHooksMissing, "revsk load"}}},
		"a link that only a feature needs is detached": {func(o *observation) {
			ho := o.at("revsk_post_bind4")
			ho.own, ho.ours, ho.dead = occupant{}, false, true
		}, []problem{{ProblemLinkDetached, "revsk load"}}},
		"the cgroup was removed and made again": {func(o *observation) {
			for i := range o.hooks {
				if ho := &o.hooks[i]; ho.ours {
					ho.own, ho.ours, ho.dead, ho.removed = occupant{}, false, true, true
				}
			}
		}, []problem{{ProblemCgroupRemoved, "revsk load"}}},
		"the agent has its hooks back": {func(o *observation) {
			for i := range o.hooks {
				if ho := &o.hooks[i]; ho.ours {
					ho.saved, ho.own, ho.ours = occupant{id: 6}, theirs(ho.hook), false
				}
			}
		}, []problem{{ProblemTakenBack, "revsk load --takeover"}}},
		"the agent has some of its hooks back": {func(o *observation) {
			ho := o.at("revsk_release")
			ho.saved, ho.own, ho.ours = occupant{id: 6}, theirs(ho.hook), false
		}, []problem{{ProblemTakenBack, "revsk load --takeover"}}},
		"the agent runs beside ours": {func(o *observation) {
			ho := o.at("revsk_connect4")
			ho.others = []attachment{{occupant: theirs(ho.hook), cgroup: testCgroup}}
		}, []problem{{ProblemBeside, "revsk unload && revsk load --takeover"}}},
		"the agent runs beside ours on a node that was taken over": {func(o *observation) {
			ho := o.at("revsk_connect4")
			ho.saved = occupant{id: 6}
			ho.others = []attachment{{occupant: theirs(ho.hook), cgroup: testCgroup}}
		}, []problem{{ProblemBeside, "revsk rollback && revsk unload --hand-back && revsk load --takeover"}}},
		"another datapath above and below": {func(o *observation) {
			ho := o.at("revsk_connect4")
			other := occupant{id: 9, name: "revsk_connect4"}
			ho.others = []attachment{{occupant: other, cgroup: "/cgroup"}, {occupant: other, cgroup: testCgroup + "/below"}}
		}, []problem{{ProblemBeside, ""}, {ProblemBeside, ""}}},
		"the pin of a map is gone": {func(o *observation) {
			o.maps[1].pinned = 0
		}, []problem{{ProblemMapMissing, "bpftool map pin id 11 /bpf/maps/cilium_lb4_services_v2"}}},
		"the control plane has made a map anew": {func(o *observation) {
			o.maps[1].pinned = 99
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
		"others could write to a directory": {func(o *observation) {
			o.unsafe = ErrUnsafeDir
		}, []problem{{ProblemUnsafeDir, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			o := observed()
			test.is(o)
			var found []problem
			for _, p := range o.problems() {
				require.NotEmpty(t, p.Text)
				require.NotContains(t, p.Text, "\n")
				found = append(found, problem{p.Code, p.Mend})
			}
			require.Equal(t, test.want, found)
		})
	}
}
