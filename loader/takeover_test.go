// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

const foreignLinks = "/sys/fs/bpf/cilium/socketlb/links/cgroup"

// anchorings are the ways in which another agent can have its programs on the cgroup.
var anchorings = map[string]func(*reference.Agent) error{
	"links":    func(a *reference.Agent) error { return a.Link(sandbox.Cgroup(), foreignLinks) },
	"multi":    func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), unix.BPF_F_ALLOW_MULTI) },
	"override": func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), unix.BPF_F_ALLOW_OVERRIDE) },
	"alone":    func(a *reference.Agent) error { return a.Attach(sandbox.Cgroup(), 0) },
}

// idle starts another agent, which goes when the test ends.
func idle(t *testing.T, anchor func(*reference.Agent) error, without ...string) *reference.Agent {
	t.Helper()
	a := unattached(t)
	require.NoError(t, anchor(a.Without(without...)))
	return a
}

// unattached is another agent before it attaches its programs, which use the pinned hash.
func unattached(t *testing.T) *reference.Agent {
	t.Helper()
	a, err := reference.IdleHash(mapsDir, 128)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

// few starts another agent that has one hook of each kind.
func few(t *testing.T, anchor func(*reference.Agent) error) *reference.Agent {
	t.Helper()
	return idle(t, anchor, "cil_sock6_recvmsg", "cil_sock4_getpeername", "cil_sock6_getpeername", "cil_sock4_connect",
		"cil_sock4_sendmsg", "cil_sock6_sendmsg", "cil_sock6_post_bind", "cil_sock6_pre_bind")
}

// ofTakeover picks the steps that a takeover from those few has, and no other load; and the last one.
func ofTakeover(step string) bool {
	switch step {
	case "attach revsk_recvmsg4", "attach revsk_release", "attach revsk_connect6", "attach revsk_post_bind4", "attach revsk_post_bind6":
		return true
	}
	return !strings.HasPrefix(step, "attach ") && !strings.HasPrefix(step, "create map ") && !strings.Contains(step, "revsk_tab_")
}

// takeover are the options of a load that takes over.
func takeover() loader.Options {
	opts := options()
	opts.Takeover = true
	return opts
}

func mustLoad(t *testing.T, opts loader.Options) loader.Status {
	t.Helper()
	dp, err := loader.Load(t.Context(), opts)
	require.NoError(t, err)
	defer dp.Close()
	return status(t, dp)
}

func status(t *testing.T, dp *loader.Datapath) loader.Status {
	t.Helper()
	s, err := dp.Status()
	require.NoError(t, err)
	return s
}

// foreignPins are the pins that are not this datapath's, without the maps that a load may have made.
func foreignPins(t *testing.T) map[string]string {
	t.Helper()
	found := pins(t)
	maps.DeleteFunc(found, func(path, _ string) bool {
		return strings.HasPrefix(path, pinsDir) || strings.HasPrefix(path, filepath.Dir(mapsDir))
	})
	return found
}

// requireTaken checks that a program of ours is the only one on every hook, and the agent's where we have none.
func requireTaken(t *testing.T, a *reference.Agent) {
	t.Helper()
	requireOnce(t)
	theirs := map[ebpf.ProgramID]string{}
	for name, prog := range a.Programs {
		theirs[programID(t, prog)] = name
	}
	for attach, ids := range attached(t) {
		name := theirs[ids[0]]
		if wantedByDefault(attach) {
			require.Empty(t, name, attach)
		} else {
			require.NotEmpty(t, name, attach)
		}
	}
}

func TestTakeoverAndHandBack(t *testing.T) {
	for name, anchor := range anchorings {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			a := idle(t, anchor)
			theirPins, theirs := foreignPins(t), attached(t)

			s := mustLoad(t, takeover())
			requireTaken(t, a)
			require.True(t, s.Complete())
			require.Equal(t, loader.ModeDual, s.Mode)
			for _, h := range s.Hooks {
				if h.Attached {
					require.Equal(t, uint32(programID(t, a.Programs[h.TakenOver.Program])), h.TakenOver.ProgramID)
					require.Equal(t, name == "links", h.TakenOver.Link)
					require.Zero(t, h.TakenOver.BackID)
				} else {
					require.Nil(t, h.TakenOver)
				}
			}
			requirePrivate(t)

			// Again, with and without the option: our own programs are replaced where they are.
			before := pins(t)
			for _, opts := range []loader.Options{options(), takeover(), withMode(options(), loader.ModeDual)} {
				programs := attached(t)
				mustLoad(t, opts)
				requireTaken(t, a)
				for attach, ids := range attached(t) {
					require.Equal(t, !wantedByDefault(attach), ids[0] == programs[attach][0], attach)
				}
				after := pins(t)
				require.Len(t, after, len(before))
				for path, what := range before {
					if !strings.HasPrefix(what, "link") {
						require.Equal(t, what, after[path], path)
					}
				}
			}

			require.ErrorIs(t, loader.Unload(t.Context(), options(), false), loader.ErrTakenOver)
			requireTaken(t, a)
			require.NoError(t, loader.HandBack(t.Context(), options()))
			require.Equal(t, theirs, attached(t))
			require.Equal(t, theirPins, foreignPins(t))
			require.NoDirExists(t, pinsDir)
			require.ErrorIs(t, loader.HandBack(t.Context(), options()), loader.ErrNotLoaded)
		})
	}
}

func TestHandBackThatWasCutShortWhileItRemovedMapsGoesOn(t *testing.T) {
	cleanUp(t)
	idle(t, anchorings["links"])
	mustLoad(t, takeover())
	m, err := ebpf.LoadPinnedMap(pinsDir+"/revsk_peers", nil)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, loader.HandBack(t.Context(), options()))
	// What there was in the middle of it.
	require.NoError(t, os.MkdirAll(pinsDir+"/former", 0o700))
	again, err := m.Clone()
	require.NoError(t, err)
	defer again.Close()
	require.NoError(t, again.Pin(pinsDir+"/revsk_peers"))

	require.NoError(t, loader.HandBack(t.Context(), options()))
	require.NoDirExists(t, pinsDir)
}

// Hooks that the other agent lacks get links of our own, which go when it gets its hooks back.
func TestTakeoverOfSomeHooks(t *testing.T) {
	for name, anchor := range anchorings {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			a := idle(t, anchor, "cil_sock6_getpeername", "cil_sock_release", "cil_sock4_connect", "cil_sock4_pre_bind")
			theirs := attached(t)
			mustLoad(t, takeover())
			requireTaken(t, a)
			require.NoError(t, loader.HandBack(t.Context(), options()))
			require.Equal(t, theirs, attached(t))
		})
	}
}

// A hook that no feature needs any more goes back to the other agent, and is taken over again with the
// feature.
func TestTakenHookOfAFeatureComesAndGoesWithIt(t *testing.T) {
	for _, name := range []string{"links", "multi"} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			idle(t, anchorings[name])
			theirs := attached(t)
			mustLoad(t, takeover())
			without := loader.DefaultFeatures()
			without.NodePort = false
			for _, opts := range []loader.Options{options(), takeover()} {
				opts.Features = &without
				mustLoad(t, opts)
				for _, attach := range attachTypes {
					same := attach == ebpf.AttachCGroupInet4PostBind || attach == ebpf.AttachCGroupInet6PostBind || !wantedByDefault(attach)
					require.Equal(t, same, theirs[attach][0] == attached(t)[attach][0], attach)
				}
				require.NoFileExists(t, pinsDir+"/former/revsk_post_bind4")
				require.NoFileExists(t, pinsDir+"/links/revsk_post_bind4")
			}
			with := loader.DefaultFeatures()
			opts := options()
			opts.Features = &with
			_, err := loader.Load(t.Context(), opts)
			require.ErrorIs(t, err, loader.ErrAgentRuns)
			opts.Takeover = true
			mustLoad(t, opts)
			require.NotEqual(t, theirs[ebpf.AttachCGroupInet4PostBind], attached(t)[ebpf.AttachCGroupInet4PostBind])
			require.NoError(t, loader.HandBack(t.Context(), options()))
			require.Equal(t, theirs, attached(t))
		})
	}
}

func TestFailureAtAnyStepOfATakeoverChangesNothing(t *testing.T) {
	for _, name := range []string{"links", "alone"} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			few(t, anchorings[name])
			failAtEachStep(t, ofTakeover, 11, withMode(takeover(), loader.ModeLegacy), loadAndClose)
			failAtEachStep(t, anyStep, 4, options(), func(t *testing.T, opts loader.Options) error { return loader.HandBack(t.Context(), opts) })
			require.NoDirExists(t, pinsDir)
		})
	}
}

// The datapath is there already, without hooks, and its mode and what it knows of the hash come back.
func TestFailureOfATakeoverRestoresTheMode(t *testing.T) {
	dp := load(t, options())
	connected(t)
	require.NoError(t, loader.Unload(t.Context(), options(), false))
	few(t, anchorings["links"])
	failAtEachStep(t, ofTakeover, 11, takeover(), func(t *testing.T, opts loader.Options) error {
		err := loadAndClose(t, opts)
		if err != nil {
			require.Equal(t, loader.ModeStorage, status(t, dp).Mode)
		}
		return err
	})
	require.Equal(t, loader.ModeDual, status(t, dp).Mode)
	// The hash gets what the socket holds.
	failAtEachStep(t, anyStep, 5, options(), func(t *testing.T, opts loader.Options) error {
		err := loader.HandBack(t.Context(), opts)
		if err != nil {
			require.Equal(t, loader.ModeDual, status(t, dp).Mode)
		}
		return err
	})
}

func TestHandBackIsRefusedWhereTheHashLacksSomething(t *testing.T) {
	cleanUp(t)
	idle(t, anchorings["links"])
	theirs := attached(t)
	dp, err := loader.Load(t.Context(), takeover())
	require.NoError(t, err)
	defer dp.Close()
	setMode := func(m loader.Mode) { require.NoError(t, dp.SetMode(t.Context(), m, true)) }
	refused := func(why string) {
		t.Helper()
		before, programs := pins(t), attached(t)
		require.ErrorIs(t, loader.HandBack(t.Context(), options()), loader.ErrHashIncomplete, why)
		require.Equal(t, before, pins(t), why)
		require.Equal(t, programs, attached(t), why)
	}
	setMode(loader.ModeStorage)
	conn := connected(t)
	refused("mode storage")
	mustLoad(t, takeover())
	refused("after another load")
	require.NoError(t, conn.Close())
	setMode(loader.ModeDual)
	connected(t)
	require.NoError(t, loader.HandBack(t.Context(), options()))
	require.Equal(t, theirs, attached(t))

	require.NoError(t, dp.Map("cilium_lb4_reverse_sk").Delete(firstKey(t, dp.Map("cilium_lb4_reverse_sk"))))
	mustLoad(t, withMode(takeover(), loader.ModeStorage))
	require.NoError(t, loader.HandBack(t.Context(), options()), "no socket has a tuple")
	require.Equal(t, theirs, attached(t))
}

func firstKey(t *testing.T, m *ebpf.Map) []byte {
	t.Helper()
	key, err := m.NextKeyBytes(nil)
	require.NoError(t, err)
	return key
}

// The other agent starts again and takes its hooks back, but for two.
func TestTakenBackHooks(t *testing.T) {
	for _, name := range []string{"links", "alone"} {
		for then, undo := range map[string]func(t *testing.T, again *reference.Agent){
			"hand back": func(t *testing.T, again *reference.Agent) {
				opts := options()
				var left, handed []string
				opts.OnChange = func(c loader.Change) {
					switch c.Action {
					case loader.ActionLeave:
						left = append(left, c.Object)
					case loader.ActionHandBack:
						handed = append(handed, c.Object)
					}
				}
				require.NoError(t, loader.HandBack(t.Context(), opts))
				require.ElementsMatch(t, []string{"cil_sock6_connect", "cil_sock_release"}, handed)
				require.Len(t, left, 9)
			},
			"take over once more": func(t *testing.T, again *reference.Agent) {
				s := mustLoad(t, takeover())
				require.True(t, s.Complete())
				requireTaken(t, again)
				require.NoError(t, loader.HandBack(t.Context(), options()))
			},
		} {
			t.Run(name+", "+then, func(t *testing.T) {
				cleanUp(t)
				idle(t, anchorings[name])
				theirs := attached(t)
				mustLoad(t, takeover())
				again := unattached(t)
				again.Without("cil_sock6_connect", "cil_sock_release")
				if name == "links" {
					require.NoError(t, again.Update(foreignLinks))
				} else {
					require.NoError(t, again.Attach(sandbox.Cgroup(), 0))
				}
				programs, before := attached(t), pins(t)

				dp, err := loader.Open(options())
				require.NoError(t, err)
				defer dp.Close()
				s := status(t, dp)
				require.False(t, s.Complete())
				for _, h := range s.Hooks {
					if h.TakenOver == nil {
						require.Contains(t, h.Program, "revsk_bind")
						continue
					}
					theirs, back := again.Programs[h.TakenOver.Program]
					require.Equal(t, !back, h.Attached, h.Program)
					if back {
						require.EqualValues(t, programID(t, theirs), h.TakenOver.BackID)
					}
				}
				_, err = loader.Load(t.Context(), options())
				require.ErrorIs(t, err, loader.ErrTakenBack)
				require.Equal(t, programs, attached(t))
				require.Equal(t, before, pins(t))

				undo(t, again)
				// What was there last.
				programs[ebpf.AttachCGroupInet6Connect] = theirs[ebpf.AttachCGroupInet6Connect]
				programs[ebpf.AttachCgroupInetSockRelease] = theirs[ebpf.AttachCgroupInetSockRelease]
				require.Equal(t, programs, attached(t))
				require.NoDirExists(t, pinsDir)
			})
		}
	}
}

func TestUnloadByForceDetachesWhatWasTakenOver(t *testing.T) {
	for name, anchor := range anchorings {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			a := idle(t, anchor)
			mustLoad(t, takeover())
			opts := options()
			opts.Force = true
			require.NoError(t, loader.Unload(t.Context(), opts, false))
			for attach, ids := range attached(t) {
				require.False(t, wantedByDefault(attach), attach)
				require.Len(t, ids, 1)
			}
			require.NoDirExists(t, pinsDir+"/former")
			require.NoDirExists(t, pinsDir+"/links")
			// The agent's links are dead; a first load makes new ones.
			require.NoError(t, a.Close())
			mustLoad(t, options())
			requireOnce(t)
		})
	}
}

func TestTakeoverIsRefused(t *testing.T) {
	target := func(t *testing.T, cgroup string) int {
		dir, err := os.Open(cgroup)
		require.NoError(t, err)
		t.Cleanup(func() { dir.Close() })
		return int(dir.Fd())
	}
	// linked pins a link under a name of the reference's.
	linked := func(t *testing.T, cgroup, pin, program string, attach ebpf.AttachType, uses ...*ebpf.Map) {
		prog, err := reference.Program(program, attach, uses...)
		require.NoError(t, err)
		t.Cleanup(func() { prog.Close() })
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: target(t, cgroup), Program: prog, Attach: attach})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, l.Detach()); l.Close() })
		require.NoError(t, os.MkdirAll(foreignLinks, 0o700))
		require.NoError(t, l.Pin(filepath.Join(foreignLinks, pin)))
	}
	connect4, connect6 := ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect
	for name, test := range map[string]struct {
		prepare func(t *testing.T)
		opts    loader.Options
		want    error
	}{
		"link of another attach type": {
			func(t *testing.T) {
				linked(t, sandbox.Cgroup(), "cil_sock4_connect", "cil_sock4_connect", connect6)
			}, takeover(), loader.ErrForeignLink,
		},
		"link of another cgroup": {
			func(t *testing.T) {
				child := sandbox.Cgroup() + "/child"
				require.NoError(t, os.Mkdir(child, 0o755))
				t.Cleanup(func() { require.NoError(t, os.Remove(child)) })
				linked(t, child, "cil_sock4_connect", "cil_sock4_connect", connect4)
			}, takeover(), loader.ErrForeignLink,
		},
		"link with a program of another name": {
			func(t *testing.T) {
				linked(t, sandbox.Cgroup(), "cil_sock4_connect", "somebody_elses", connect4)
			}, takeover(), loader.ErrForeignProgram,
		},
		"pin that is no link": {
			func(t *testing.T) {
				pinMap(t, foreignLinks+"/cil_sock4_connect", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			}, takeover(), nil,
		},
		"program of another name, attached alone": {
			func(t *testing.T) {
				idle(t, anchorings["links"], "cil_sock4_connect")
				prog, err := reference.Program("somebody_elses", connect4)
				require.NoError(t, err)
				defer prog.Close()
				fd := target(t, sandbox.Cgroup())
				require.NoError(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: fd, Program: prog, Attach: connect4}))
				t.Cleanup(func() {
					require.NoError(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: fd, Program: prog, Attach: connect4}))
				})
			}, takeover(), loader.ErrExclusive,
		},
		"nothing is there": {func(*testing.T) {}, takeover(), loader.ErrNothingToTakeOver},
		"without the option": {
			func(t *testing.T) { idle(t, anchorings["links"]) }, options(), loader.ErrAgentRuns,
		},
		"another hash": {
			func(t *testing.T) {
				hash, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 16})
				require.NoError(t, err)
				t.Cleanup(func() { hash.Close() })
				linked(t, sandbox.Cgroup(), "cil_sock4_connect", "cil_sock4_connect", connect4, hash)
			}, takeover(), loader.ErrForeignProgram,
		},
		"mode storage over entries": {
			func(t *testing.T) {
				pinMap(t, mapsDir+"/cilium_lb4_reverse_sk", &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 16,
					Contents: []ebpf.MapKV{{Key: make([]byte, 16), Value: make([]byte, 8)}}})
				idle(t, anchorings["links"])
			}, withMode(takeover(), loader.ModeStorage), loader.ErrUnsafeMode,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			test.prepare(t)
			before, programs := pins(t), attached(t)
			for _, load := range []func() error{
				func() error { _, err := loader.PlanLoad(t.Context(), test.opts); return err },
				func() error { return loadAndClose(t, test.opts) },
			} {
				err := load()
				require.Error(t, err)
				if test.want != nil {
					require.ErrorIs(t, err, test.want)
				}
				require.Equal(t, before, pins(t))
				require.Equal(t, programs, attached(t))
			}
		})
	}
}

// The agent has started on a cgroup on which a datapath runs: ours makes way, and takes over.
func TestTakeoverBesideOurs(t *testing.T) {
	for _, name := range []string{"links", "multi"} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			mustLoad(t, options())
			conn := connected(t)
			a := idle(t, anchorings[name])
			injected := errors.New("injected")
			before, programs := withoutLinks(pins(t)), attached(t)
			err := loadAndClose(t, takeover().WithStep(func(step string) error {
				if step == "attach revsk_sendmsg6" {
					return injected
				}
				return nil
			}))
			require.ErrorIs(t, err, injected)
			require.Equal(t, before, withoutLinks(pins(t)))
			for attach, ids := range attached(t) {
				require.ElementsMatch(t, programs[attach], ids)
			}
			s := mustLoad(t, takeover())
			require.Empty(t, s.Problems)
			require.Equal(t, loader.ModeDual, s.Mode)
			requireTaken(t, a)
			require.Equal(t, serviceAddr, peer(t, conn))
			require.NoError(t, loader.HandBack(t.Context(), options()))
			for attach, ids := range attached(t) {
				require.Len(t, ids, 1, attach)
			}
		})
	}
}

// The agent's pins of its links are gone, or are in another directory.
func TestTakeoverOfLinksThatArePinnedElsewhereOrNowhere(t *testing.T) {
	cleanUp(t)
	a := idle(t, anchorings["links"])
	theirs := attached(t)
	elsewhere := filepath.Dir(foreignLinks) + "/elsewhere"
	require.NoError(t, os.Mkdir(elsewhere, 0o700))
	for _, name := range []string{"cil_sock4_connect", "cil_sock6_recvmsg"} {
		require.NoError(t, os.Rename(filepath.Join(foreignLinks, name), filepath.Join(elsewhere, name)))
	}
	require.NoError(t, os.Remove(filepath.Join(foreignLinks, "cil_sock_release")))
	s := mustLoad(t, takeover())
	requireTaken(t, a)
	require.Empty(t, s.Problems)
	require.NoError(t, loader.HandBack(t.Context(), options()))
	require.Equal(t, theirs, attached(t))
}

// A hash of the same maps is no reason to refuse.
func TestTakeoverOfProgramsWithTheSameHash(t *testing.T) {
	cleanUp(t)
	pinMap(t, mapsDir+"/cilium_lb4_reverse_sk", &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 16})
	hash, err := ebpf.LoadPinnedMap(mapsDir+"/cilium_lb4_reverse_sk", nil)
	require.NoError(t, err)
	defer hash.Close()
	a, err := reference.Idle(hash)
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	require.NoError(t, anchorings["links"](a))
	mustLoad(t, takeover())
	requireTaken(t, a)
	// The agent makes its map anew: its former programs are of no use any more.
	require.NoError(t, os.Remove(mapsDir+"/cilium_lb4_reverse_sk"))
	pinMap(t, mapsDir+"/cilium_lb4_reverse_sk", &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 32})
	require.ErrorIs(t, loader.HandBack(t.Context(), options()), loader.ErrHashIncomplete)
	requireTaken(t, a)
	opts := options()
	opts.Force = true
	require.NoError(t, loader.HandBack(t.Context(), opts))
}

func TestHandBackOfNothing(t *testing.T) {
	load(t, options())
	before := pins(t)
	require.ErrorIs(t, loader.HandBack(t.Context(), options()), loader.ErrNotTakenOver)
	require.Equal(t, before, pins(t))
}

const killAtEnv = "REVSK_LOADER_TEST_KILL_AT"

// runUntilKilled is a process that loads, or hands back, and dies at the step that it was told.
func runUntilKilled() int {
	what, killAt, _ := strings.Cut(os.Getenv(killAtEnv), " ")
	last, err := strconv.Atoi(killAt)
	if err != nil {
		return 1
	}
	var n int
	step := func(step string) error {
		if what == "next" && !ofSwitches(step) || what != "next" && !ofTakeover(step) {
			return nil
		}
		if n++; n > last {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}
	switch what {
	case "back":
		err = loader.HandBack(context.Background(), options().WithStep(step))
	case "next":
		_, err = loader.Load(context.Background(), nextBuild().WithStep(step))
	default:
		_, err = loader.Load(context.Background(), takeover().WithStep(step))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// killed runs that process, and tells whether it was killed.
func killed(t *testing.T, what string, at int) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", killAtEnv, what, at))
	cmd.Stderr = os.Stderr
	err := cmd.Run()
	if state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && state.Signaled() {
		require.Equal(t, syscall.SIGKILL, state.Signal())
		return true
	}
	require.NoError(t, err)
	return false
}

// Killed at any step, a load is completed by another, and undone by a hand-back; and the other way round.
func TestKilledAtAnyStep(t *testing.T) {
	for _, name := range []string{"links", "alone"} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			a := few(t, anchorings[name])
			theirPins, theirs := foreignPins(t), attached(t)
			back := func() {
				t.Helper()
				require.Equal(t, theirs, attached(t))
				require.Equal(t, theirPins, foreignPins(t))
				require.NoDirExists(t, pinsDir)
			}
			steps := 0
			for ; killed(t, "load", steps); steps++ {
				if steps%3 == 0 {
					require.Equal(t, loader.ModeDual, mustLoad(t, takeover()).Mode)
					requireTaken(t, a)
				}
				if err := loader.HandBack(t.Context(), options()); errors.Is(err, loader.ErrNotTakenOver) {
					// Killed before anything was taken.
					require.Equal(t, theirs, attached(t))
					require.NoError(t, loader.Unload(t.Context(), options(), true))
				} else {
					require.NoError(t, err)
				}
				back()
			}
			require.Greater(t, steps, 9)
			requireTaken(t, a)
			for steps = 0; killed(t, "back", steps); steps++ {
				if steps%3 == 0 {
					// With the option: the agent may have hooks back already.
					require.Contains(t, []loader.Mode{loader.ModeDual, loader.ModeLegacy}, mustLoad(t, takeover()).Mode)
					requireTaken(t, a)
				}
				if err := loader.HandBack(t.Context(), options()); !errors.Is(err, loader.ErrNotLoaded) { // killed after the last step
					require.NoError(t, err)
				}
				back()
				mustLoad(t, takeover())
			}
			require.Greater(t, steps, 4)
			back()
		})
	}
}
