// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
)

// names are the steps of a plan; those of the maps as one, and what all hooks have done to them as one.
func names(steps []step) []string {
	var all []string
	for _, s := range steps {
		name := s.String()
		switch s := s.(type) {
		case createMap:
			name = "create maps"
		case exchange:
			name = s.said.Action
		case attach:
			name = "attach"
		case detach:
			name = "detach"
		case saveProgram:
			name = "keep"
		case pinLink:
			name = "pin link"
		case rename:
			name = "set aside"
		case unpin:
			name = "unpin " + map[pinKind]string{aMap: "map", aProgram: "program", aLink: "link"}[s.kind]
		}
		if len(all) == 0 || all[len(all)-1] != name {
			all = append(all, name)
		}
	}
	return all
}

// agentOn puts another agent's programs on the hooks of a cgroup.
func agentOn(o *observation, linked bool, flags uint32) {
	o.opts.Takeover, o.opts.TakeoverLinks = true, "/bpf/cilium"
	hash := ebpf.MapID(70)
	o.mapNamed(mapReverse4).pinned = hash
	o.hashes[hash] = mapReverse4
	for i := range o.hooks {
		h := &o.hooks[i]
		a := attachment{program: program{id: ebpf.ProgramID(300 + i), name: kept(h.reference), maps: []ebpf.MapID{hash}}, cgroup: testCgroup, flags: flags}
		if linked {
			a.link = link.ID(400 + i)
			h.agentPin = linkState{path: "/bpf/cilium/" + h.reference, id: a.link, program: a.id, live: true}
		}
		h.on = append(h.on, a)
	}
}

// takenOver is a datapath in the places of another agent.
func takenOverFrom(linked bool) *observation {
	o := observed()
	o.mode = ModeMirror
	o.hashes[o.mapNamed(mapReverse4).pinned] = mapReverse4
	o.dirs[o.opts.formerDir()] = nil
	o.each(func(h *hookState) {
		h.saved = program{id: 6, name: kept(h.reference), maps: []ebpf.MapID{o.mapNamed(mapReverse4).pinned}}
		o.dirs[o.opts.formerDir()] = append(o.dirs[o.opts.formerDir()], h.program)
		if !linked {
			h.pin, h.on[0].link = linkState{}, 0
		}
	})
	if !linked {
		o.dirs[o.opts.linksDir()] = []string{}
	}
	return o
}

func TestPlanOfALoad(t *testing.T) {
	first := []string{
		"create directory /bpf/revsk", "create directory /bpf/maps", "create directory /bpf/revsk/links", "create maps", "load programs",
		"switch to mode storage", "pin map revsk_config", "attach", "keep the features",
	}
	mode := func(m Mode) *Mode { return &m }
	taken := func(linked bool, more ...string) []string {
		keep := []string{"keep", "pin link"}
		want := slices.Concat(first[:4], []string{"leave cil_sock4_pre_bind", "leave cil_sock6_pre_bind", "load programs",
			"create directory /bpf/revsk/former", "switch to mode dual", "pin map revsk_config"})
		if linked {
			for range 11 {
				want = append(want, keep...)
			}
		} else {
			want = append(want, "keep")
		}
		return slices.Concat(want, []string{"take over"}, more, []string{"keep the features"})
	}
	for name, test := range map[string]struct {
		o    *observation
		is   func(*observation)
		want []string
		err  error
	}{
		"nothing is there": {nothingThere(), func(*observation) {}, first, nil},
		"the hash has entries": {nothingThere(), func(o *observation) { o.maps[0].has = true },
			with(first, 5, "switch to mode dual"), nil},
		"the hash has entries, and mode storage is asked for": {nothingThere(), func(o *observation) {
			o.maps[0].has, o.opts.Mode = true, mode(ModeStorage)
		}, nil, ErrUnsafeMode},
		"the hash has entries, and mode storage is forced": {nothingThere(), func(o *observation) {
			o.maps[0].has, o.opts.Mode, o.opts.Force = true, mode(ModeStorage), true
		}, first, nil},
		"ours runs": {observed(), func(*observation) {}, []string{"load programs", "replace"}, nil},
		"ours runs, in another mode": {observed(), func(o *observation) { o.opts.Mode = mode(ModeDual) },
			[]string{"load programs", "replace", "switch to mode dual"}, nil},
		"ours runs, and sockets hold what mode legacy would forget": {observed(), func(o *observation) {
			o.opts.Mode, o.held = mode(ModeLegacy), 1
		}, nil, ErrUnsafeMode},
		"ours runs, with other features": {observed(), func(o *observation) {
			o.opts.ChangeFeatures = func(f *Features) { f.L7 = false }
		}, []string{"load programs", "replace", "keep the features"}, nil},
		"ours of a later release runs": {observed(), func(o *observation) {
			o.others = []otherMap{{pin: "/bpf/revsk/revsk_conn_v12", needed: true}}
		}, nil, ErrLayout},
		"ours of a later release runs, and sockets need nothing": {observed(), func(o *observation) {
			o.others, o.mode = []otherMap{{pin: "/bpf/revsk/revsk_conn_v12", needed: true}}, ModeLegacy
		}, []string{"load programs", "replace", "unpin map"}, nil},
		"a later release has left a map that nothing needs": {observed(), func(o *observation) {
			o.others = []otherMap{{pin: "/bpf/revsk/revsk_conn_v12"}}
		}, []string{"load programs", "replace", "unpin map"}, nil},
		"features without a meaning": {observed(), func(o *observation) {
			o.opts.ChangeFeatures = func(f *Features) { f.IPv4, f.IPv6 = false, false }
		}, nil, ErrInvalid},
		"a feature goes, and its hooks": {observed(), func(o *observation) {
			o.opts.ChangeFeatures = func(f *Features) { f.NodePort = false }
		}, []string{"load programs", "replace", "keep the features", "detach", "unpin link", "detach", "unpin link"}, nil},
		"a feature goes, and the agent gets its hooks back": {takenOverFrom(true), func(o *observation) {
			o.opts.ChangeFeatures = func(f *Features) { f.NodePort = false }
		}, []string{"load programs", "replace", "keep the features", "hand back", "unpin link", "unpin program", "unpin link", "unpin program"}, nil},
		"unloaded, and maps kept": {observed(), func(o *observation) {
			o.each(func(h *hookState) { h.pin, h.on = linkState{}, nil })
		}, []string{"load programs", "set mark", "attach"}, nil},
		"a link is dead": {observed(), func(o *observation) {
			h := o.at("revsk_post_bind6")
			h.pin.live, h.on = false, nil
		}, []string{"load programs", "replace", "unpin link", "attach"}, nil},
		"the cgroup was removed and made again": {observed(), func(o *observation) {
			o.each(func(h *hookState) {
				if h.program != "revsk_recvmsg4" {
					h.pin, h.on = linkState{}, nil
					return
				}
				h.pin.live, h.pin.removed, h.on = false, true, nil
			})
		}, []string{"load programs", "set mark", "create directory /bpf/revsk/removed_cgroups", "set aside", "attach"}, nil},
		"the last socket of a cgroup that was removed is closed": {observed(), func(o *observation) {
			o.removed = []linkState{{path: "/bpf/revsk/removed_cgroups/revsk_connect4_3"}}
		}, []string{"load programs", "replace", "unpin link", "remove directory /bpf/revsk/removed_cgroups"}, nil},
		"sockets of a cgroup that was removed live": {observed(), func(o *observation) {
			o.removed = []linkState{{path: "/bpf/revsk/removed_cgroups/revsk_connect4_3", removed: true}}
		}, []string{"load programs", "replace"}, nil},

		"another agent runs": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			o.opts.Takeover = false
		}, nil, ErrAgentRuns},
		"a takeover of links": {nothingThere(), func(o *observation) { agentOn(o, true, unix.BPF_F_ALLOW_MULTI) }, taken(true), nil},
		"a takeover of links that are pinned nowhere": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			for i := range o.hooks {
				o.hooks[i].agentPin = linkState{}
			}
		}, taken(true), nil},
		"a takeover of programs without links": {nothingThere(), func(o *observation) { agentOn(o, false, unix.BPF_F_ALLOW_MULTI) }, taken(false), nil},
		"a takeover of programs that are alone": {nothingThere(), func(o *observation) {
			agentOn(o, false, 0)
			for i := range o.hooks {
				o.hooks[i].blocked = ErrExclusive
			}
		}, taken(false), nil},
		"a takeover into mode storage": {nothingThere(), func(o *observation) {
			agentOn(o, false, 0)
			o.opts.Mode = mode(ModeStorage)
		}, taken(false, "switch to mode storage"), nil},
		"a takeover into mode storage, and the hash has entries": {nothingThere(), func(o *observation) {
			agentOn(o, false, 0)
			o.opts.Mode, o.mapNamed(mapReverse6).has = mode(ModeStorage), true
		}, nil, ErrUnsafeMode},
		"a takeover of nothing": {nothingThere(), func(o *observation) { o.opts.Takeover = true }, nil, ErrNothingToTakeOver},
		"a takeover of another hash": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			o.mapNamed(mapReverse4).pinned = 71
		}, nil, ErrForeignProgram},
		"a takeover of programs without a hash": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			clear(o.hashes)
		}, nil, ErrForeignProgram},
		"a takeover of a link that is not what its name says": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			o.at("revsk_connect4").agentPin = linkState{err: ErrForeignLink}
			o.at("revsk_connect4").on = nil
		}, nil, ErrForeignLink},
		"a takeover of a link with another program": {nothingThere(), func(o *observation) {
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			o.at("revsk_connect4").on[0].name = "somebody_elses"
		}, nil, ErrForeignProgram},
		"a takeover, and one hook has another program alone": {nothingThere(), func(o *observation) {
			agentOn(o, false, unix.BPF_F_ALLOW_MULTI)
			h := o.at("revsk_connect4")
			h.on[0].name, h.blocked = "somebody_elses", ErrExclusive
		}, nil, ErrExclusive},
		"a takeover beside ours, which makes way": {observed(), func(o *observation) {
			h := o.at("revsk_connect4")
			o.opts.Takeover, h.on = true, append(h.on, o.theirs(h))
			h.on[1].link = 9
		}, []string{"load programs", "create directory /bpf/revsk/former", "switch to mode dual", "fill the hash",
			"keep", "detach", "unpin link", "pin link", "set mark", "replace", "take over", "replace"}, nil},
		"a takeover beside ours, in the place of the agent's former links": {takenOverFrom(true), func(o *observation) {
			h := o.at("revsk_connect4")
			o.opts.Takeover, h.on = true, append(h.on, o.theirs(h))
			h.on[1].link = 9
			h.agentPin = linkState{path: "/bpf/cilium/cil_sock4_connect", id: 9, program: 7, live: true}
		}, []string{"load programs", "switch to mode dual", "fill the hash",
			"keep", "detach", "unpin link", "pin link", "set mark", "replace", "take over", "replace", "keep the features"}, nil},
		"a takeover beside ours, of programs without links": {takenOverFrom(false), func(o *observation) {
			h := o.at("revsk_connect4")
			o.opts.Takeover, h.on, o.mode = true, append(h.on, o.theirs(h)), ModeLegacy
		}, []string{"load programs", "keep", "detach", "set mark", "replace", "take over", "replace"}, nil},
		"ours in the agent's place":                {takenOverFrom(true), func(*observation) {}, []string{"load programs", "replace"}, nil},
		"ours in the agent's place, without links": {takenOverFrom(false), func(*observation) {}, []string{"load programs", "replace"}, nil},
		"a call was cut short before the exchange": {takenOverFrom(true), func(o *observation) {
			h := o.at("revsk_sendmsg6")
			h.pin.program, h.on[0].program = h.saved.id, h.saved
			o.mode = ModeDual
		}, []string{"load programs", "set mark", "replace", "take over", "replace"}, nil},
		"the agent has restarted": {takenOverFrom(true), func(o *observation) { o.each(o.takeBack) }, nil, ErrTakenBack},
		"the agent has restarted, and is taken over again from mode mirror": {takenOverFrom(true), func(o *observation) {
			o.opts.Takeover = true
			o.each(o.takeBack)
		}, []string{"load programs", "switch to mode dual", "keep", "set mark", "take over"}, nil},
		"the agent has restarted, and is taken over again from mode storage": {takenOverFrom(true), func(o *observation) {
			o.opts.Takeover, o.mode = true, ModeStorage
			o.each(o.takeBack)
		}, []string{"load programs", "switch to mode dual", "keep", "set mark", "take over"}, nil},
		"the agent has restarted, and is taken over again in mode legacy": {takenOverFrom(true), func(o *observation) {
			o.opts.Takeover, o.mode = true, ModeLegacy
			o.each(o.takeBack)
		}, []string{"load programs", "keep", "set mark", "take over"}, nil},
		"somebody else is in the agent's place": {takenOverFrom(true), func(o *observation) {
			o.opts.Takeover = true
			o.each(o.takeBack)
			o.at("revsk_connect4").on[0].name = "somebody_elses"
		}, nil, ErrForeignProgram},

		"another datapath of revsk on the cgroup": {nothingThere(), func(o *observation) {
			h := o.at("revsk_connect4")
			h.on = []attachment{{program: program{id: 5, name: "revsk_connect4"}, cgroup: testCgroup}}
		}, nil, ErrOtherDatapath},
		"another datapath on a cgroup above": {nothingThere(), func(o *observation) {
			h := o.at("revsk_connect4")
			h.around = []attachment{{program: program{id: 5, name: kept(h.reference)}, cgroup: "/cgroup"}}
		}, nil, ErrOtherDatapath},
		"somebody else's program is alone on a hook": {nothingThere(), func(o *observation) {
			o.at("revsk_connect4").blocked = ErrExclusive
		}, nil, ErrExclusive},
		"somebody else's program alone on a hook that nobody needs": {nothingThere(), func(o *observation) {
			o.at("revsk_bind4").blocked = ErrExclusive
		}, first, nil},
		"our link is not what its name says": {observed(), func(o *observation) {
			o.at("revsk_bind4").pin = linkState{id: 1, err: ErrForeignLink}
		}, nil, ErrForeignLink},
		"a directory is not safe":     {nothingThere(), func(o *observation) { o.unsafe = ErrUnsafeDir }, nil, ErrUnsafeDir},
		"a map has another layout":    {observed(), func(o *observation) { o.maps[2].err = ErrLayout }, nil, ErrLayout},
		"the features cannot be read": {observed(), func(o *observation) { o.keptErr = ErrLayout }, nil, ErrLayout},
		"a pin is missing":            {observed(), func(o *observation) { o.maps[2].pinned = 0 }, []string{"create maps", "load programs", "replace"}, nil},
		"a pin of a map with entries is missing": {observed(), func(o *observation) {
			o.maps[2].pinned, o.maps[2].used[0].has = 0, true
		}, nil, ErrMapsReplaced},
		"the control plane has made a map anew": {observed(), func(o *observation) { o.maps[2].pinned = 99 }, []string{"load programs", "replace"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			test.is(test.o)
			steps, _, err := planLoad(test.o)
			require.ErrorIs(t, err, test.err)
			require.Equal(t, test.want, names(steps))
		})
	}
}

// A feature is what the agent's programs say, unless somebody has said otherwise.
func TestFeaturesOfATakeover(t *testing.T) {
	yes := true
	for name, test := range map[string]struct {
		facts agentFacts
		is    func(*observation)
		want  func(*Features)
		err   error
	}{
		"programs that do not translate": {agentFacts{}, func(*observation) {}, func(*Features) {}, nil},
		"nobody knows":                   {agentFacts{real: true}, func(*observation) {}, func(*Features) {}, ErrFeaturesUnknown},
		"somebody has said so": {agentFacts{real: true}, func(o *observation) {
			o.opts.Said = []string{"host_netns_only"}
		}, func(f *Features) { f.IPv6, f.HealthCheck = false, true }, nil},
		"what is known, and one thing said otherwise": {
			agentFacts{real: true, hostOnly: &yes, constants: map[string]uint64{"enable_jiffies": 1, "kernel_hz": 250, "enable_lrp": 0}},
			func(o *observation) {
				o.opts.ChangeFeatures = func(f *Features) { f.LocalRedirect = true }
			}, func(f *Features) { f.IPv6, f.HealthCheck, f.HostNetnsOnly, f.AffinityHz = false, true, true, 250 }, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := nothingThere()
			o.maps = append(o.maps, mapState{name: lbmap.Services6Map})
			agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
			o.agent = &test.facts
			test.is(o)
			want := DefaultFeatures()
			test.want(&want)
			_, f, err := planLoad(o)
			require.ErrorIs(t, err, test.err)
			if test.err == nil {
				require.Equal(t, want, f)
			}
		})
	}
}

// with is a list with another word at one place.
func with(list []string, i int, word string) []string {
	list = slices.Clone(list)
	list[i] = word
	return list
}

func TestPlanOfAnUnload(t *testing.T) {
	detached := func(more ...string) []string {
		var all []string
		for range 11 {
			all = append(all, "detach", "unpin link")
		}
		return append(all, more...)
	}
	for name, test := range map[string]struct {
		o     *observation
		is    func(*observation)
		purge bool
		want  []string
		err   error
	}{
		"ours runs":        {observed(), func(*observation) {}, false, detached("remove directory /bpf/revsk/links"), nil},
		"ours runs, purge": {observed(), func(*observation) {}, true, detached("remove directory /bpf/revsk/links", "unpin map", "remove directory /bpf/revsk"), nil},
		"nothing is attached": {observed(), func(o *observation) {
			o.each(func(h *hookState) { h.pin, h.on = linkState{}, nil })
			delete(o.dirs, o.opts.linksDir())
		}, false, nil, nil},
		"somebody else's files": {observed(), func(o *observation) {
			for dir := range o.dirs {
				o.dirs[dir] = append(o.dirs[dir], "foreign")
			}
		}, true, detached("leave /bpf/revsk/links", "unpin map", "leave /bpf/revsk"), nil},
		"a map that is not ours": {observed(), func(o *observation) { o.mapNamed(mapConn).foreign = true }, true,
			detached("remove directory /bpf/revsk/links", "unpin map", "leave /bpf/revsk/revsk_conn", "unpin map", "leave /bpf/revsk"), nil},
		"our link is not what its name says": {observed(), func(o *observation) { o.at("revsk_bind4").pin.err = ErrForeignLink }, false, nil, ErrForeignLink},
		"sockets of a cgroup that was removed live": {observed(), func(o *observation) {
			dir := o.opts.removedDir()
			o.dirs[dir] = []string{"revsk_connect4_3"}
			o.removed = []linkState{{path: dir + "/revsk_connect4_3", removed: true}}
		}, false, detached("detach", "unpin link", "remove directory /bpf/revsk/removed_cgroups", "remove directory /bpf/revsk/links"), nil},
		"ours in the agent's place": {takenOverFrom(true), func(*observation) {}, false, nil, ErrTakenOver},
	} {
		t.Run(name, func(t *testing.T) {
			test.is(test.o)
			steps, err := planUnload(test.o, test.purge)
			require.ErrorIs(t, err, test.err)
			require.Equal(t, test.want, names(steps))
		})
	}
}

// What force has detached of the agent's links cannot be taken back, all else can.
func TestPlanOfAnUnloadByForce(t *testing.T) {
	for _, linked := range []bool{true, false} {
		o := takenOverFrom(linked)
		o.opts.Force = true
		o.takeBack(o.at("revsk_sendmsg6"))
		steps, err := planUnload(o, false)
		require.NoError(t, err)
		detached := 0
		for _, s := range steps {
			if d, ok := s.(detach); ok {
				detached++
				require.Equal(t, linked, d.final)
				require.NotZero(t, d.program)
				require.Equal(t, linked, d.path != "")
			}
		}
		require.Equal(t, 10, detached)
		require.Contains(t, names(steps), "leave cil_sock6_sendmsg")
		require.Equal(t, "remove directory /bpf/revsk/former", steps[len(steps)-1].String())
	}
}

func TestPlanOfAHandBack(t *testing.T) {
	legacy := "switch to mode legacy"
	one := make(entries)
	one[keyOf("192.0.2.1:53")] = valueOf("192.0.2.2:53")
	for name, test := range map[string]struct {
		is    func(*observation)
		begin []string // the first steps; the rest removes
		err   error
	}{
		"from mode mirror":  {func(*observation) {}, []string{"fill the hash", legacy, "hand back"}, nil},
		"from mode dual":    {func(o *observation) { o.mode = ModeDual }, []string{"fill the hash", legacy, "hand back"}, nil},
		"from mode legacy":  {func(o *observation) { o.mode = ModeLegacy }, []string{"hand back"}, nil},
		"from mode storage": {func(o *observation) { o.mode = ModeStorage }, []string{legacy, "hand back"}, nil},
		"from mode storage, and the hash has entries": {func(o *observation) {
			o.mode, o.mapNamed(mapReverse4).has = ModeStorage, true
		}, nil, ErrHashIncomplete},
		"from mode storage, and sockets hold something": {func(o *observation) {
			o.mode, o.lacking.missing = ModeStorage, one
		}, nil, ErrHashIncomplete},
		"from mode storage, by force": {func(o *observation) {
			o.mode, o.lacking.missing, o.opts.Force = ModeStorage, one, true
		}, []string{legacy, "hand back"}, nil},
		"the hash has evicted something": {func(o *observation) { o.lacking.missing = one }, []string{"fill the hash", legacy, "hand back"}, nil},
		"the hash says something else":   {func(o *observation) { o.lacking.others = one }, nil, ErrHashIncomplete},
		"nobody would find the entry":    {func(o *observation) { o.lacking.missing, o.lacking.unreachable = one, 1 }, nil, ErrHashIncomplete},
		"the hash says something else, in mode legacy": {func(o *observation) {
			o.mode, o.lacking.others = ModeLegacy, one
		}, []string{"hand back"}, nil},
		"the agent's programs use another hash": {func(o *observation) { o.mapNamed(mapReverse4).pinned = 99 }, nil, ErrHashIncomplete},
		"the agent has everything back":         {func(o *observation) { o.each(o.takeBack) }, []string{"unpin link"}, nil},
		"the agent has everything back, and its hash another service": {func(o *observation) {
			o.each(o.takeBack)
			o.lacking.others = one
		}, []string{"unpin link"}, nil},
		"the agent has everything back, and its hash lacks something": {func(o *observation) {
			o.each(o.takeBack)
			o.lacking.missing = one
		}, nil, ErrHashIncomplete},
		"the agent runs beside ours": {func(o *observation) {
			o.each(func(h *hookState) { h.on = append(h.on, o.theirs(h)) })
		}, []string{"detach"}, nil},
		"a call was cut short after the last program": {func(o *observation) {
			o.each(func(h *hookState) { h.pin, h.on, h.saved = linkState{}, nil, program{} })
			o.dirs[o.opts.linksDir()], o.dirs[o.opts.formerDir()] = nil, []string{}
			o.dirs[o.opts.PinsDir] = []string{"former", "links", mapConn} // and some maps
			o.loaded, o.mapNamed(mapConfig).pinned = false, 0
		}, []string{"remove directory /bpf/revsk/links"}, nil},
		"a call was cut short before its last step": {func(o *observation) {
			o.each(func(h *hookState) { h.pin, h.on, h.saved = linkState{}, nil, program{} })
			o.loaded, o.mapNamed(mapConfig).pinned = false, 0
			clear(o.dirs)
			o.dirs[o.opts.PinsDir] = []string{}
		}, []string{"remove directory /bpf/revsk"}, nil},
		"nothing was taken over": {func(o *observation) { delete(o.dirs, o.opts.formerDir()) }, nil, ErrNotTakenOver},
	} {
		t.Run(name, func(t *testing.T) {
			o := takenOverFrom(true)
			test.is(o)
			steps, err := planHandBack(o)
			require.ErrorIs(t, err, test.err)
			all := names(steps)
			require.GreaterOrEqual(t, len(all), len(test.begin))
			require.Equal(t, test.begin, all[:len(test.begin):len(test.begin)])
			if test.err == nil {
				require.Equal(t, "remove directory /bpf/revsk", all[len(all)-1])
				removes(t, steps)
			}
		})
	}
}

// removes checks that a hand-back removes the pin of a link before that of the former program.
func removes(t *testing.T, steps []step) {
	t.Helper()
	gone := make(map[string]bool)
	for _, s := range steps {
		if u, ok := s.(unpin); ok && strings.Contains(u.path, "/former/") {
			require.True(t, gone[strings.Replace(u.path, "/former/", "/links/", 1)], u.path)
		} else if ok {
			gone[u.path] = true
		}
	}
}

func TestPlanOfAMode(t *testing.T) {
	empty := func(*observation) {}
	hash := func(o *observation) { o.mapNamed(mapReverse6).has = true }
	held := func(o *observation) { o.held = 1 }
	for _, test := range []struct {
		from, to Mode
		is       func(*observation)
		ok       bool
	}{
		{ModeStorage, ModeStorage, held, true},
		{ModeStorage, ModeDual, held, true},
		{ModeStorage, ModeDual, hash, false},
		{ModeStorage, ModeLegacy, held, false},
		{ModeStorage, ModeMirror, held, false},
		{ModeStorage, ModeMirror, empty, true},
		{ModeDual, ModeStorage, held, true},
		{ModeDual, ModeStorage, hash, false},
		{ModeDual, ModeMirror, hash, false},
		{ModeDual, ModeLegacy, hash, true},
		{ModeDual, ModeLegacy, held, false},
		{ModeMirror, ModeDual, hash, true},
		{ModeMirror, ModeStorage, hash, false},
		{ModeMirror, ModeLegacy, held, false},
		{ModeLegacy, ModeStorage, hash, false},
		{ModeLegacy, ModeDual, hash, true},
		{ModeLegacy, ModeMirror, hash, false},
	} {
		o := observed()
		test.is(o)
		steps, err := o.planMode(test.from, test.to, false)
		if test.ok {
			require.NoError(t, err, "%v to %v", test.from, test.to)
		} else {
			require.ErrorIs(t, err, ErrUnsafeMode, "%v to %v", test.from, test.to)
		}
		require.Equal(t, test.ok && test.from != test.to, len(steps) == 1)
		steps, err = o.planMode(test.from, test.to, true)
		require.NoError(t, err)
		require.Equal(t, test.from != test.to, len(steps) == 1)
	}
}

func keyOf(backend string) lbmap.ReverseSKKey {
	return lbmap.ReverseSKKey{Cookie: 1, Backend: netip.MustParseAddrPort(backend)}
}

func valueOf(service string) lbmap.ReverseSKValue {
	return lbmap.ReverseSKValue{Service: netip.MustParseAddrPort(service)}
}

// Where another agent has its links is kept, however far a load came that was killed before it kept that.
func TestTheAgentsLinksAreKeptAfterAKill(t *testing.T) {
	kept := func(o *observation) string {
		t.Helper()
		steps, _, err := planLoad(o)
		require.NoError(t, err)
		i := slices.IndexFunc(steps, func(s step) bool { _, is := s.(setFeatures); return is })
		require.GreaterOrEqual(t, i, 0)
		return steps[i].(setFeatures).to.AgentLinks
	}
	o := nothingThere()
	agentOn(o, true, unix.BPF_F_ALLOW_MULTI)
	require.Equal(t, "/bpf/cilium", kept(o))

	// Its programs and links are pinned.
	for i := range o.hooks {
		if h := &o.hooks[i]; h.reference != "" {
			h.saved, h.pin = h.on[0].program, h.agentPin
			h.pin.path = o.opts.linkPath(h.hook)
		}
	}
	require.Equal(t, "/bpf/cilium", kept(o))

	// Ours are in its links.
	o = takenOverFrom(true)
	o.opts.Takeover, o.opts.TakeoverLinks = true, "/bpf/cilium"
	o.each(func(h *hookState) {
		h.agentPin = h.pin
		h.agentPin.path = "/bpf/cilium/" + h.reference
	})
	require.Equal(t, "/bpf/cilium", kept(o))
}
