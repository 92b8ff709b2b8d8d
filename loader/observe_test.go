// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

// codes are those of the problems that the status has.
func codes(t *testing.T, opts loader.Options) (found []string) {
	t.Helper()
	dp, err := loader.Open(opts)
	require.NoError(t, err)
	defer dp.Close()
	for _, p := range status(t, dp).Problems {
		found = append(found, p.Code)
	}
	return found
}

// below makes a cgroup below the sandbox's.
func below(t *testing.T) string {
	t.Helper()
	child := filepath.Join(sandbox.Cgroup(), "child")
	require.NoError(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(child)) })
	return child
}

// onCgroup are the options of another datapath that shares the maps of the load balancer.
func onCgroup(cgroup string) loader.Options {
	opts := elsewhere()
	opts.Cgroup = cgroup
	return opts
}

func TestAnotherDatapathOnTheSameSocketsIsRefusedAndShown(t *testing.T) {
	child := below(t)
	load(t, options())
	require.Empty(t, codes(t, options()))
	requireRefused(t, loader.ErrOtherDatapath, func() error { return loadAndClose(t, elsewhere()) })
	requireRefused(t, loader.ErrOtherDatapath, func() error { return loadAndClose(t, onCgroup(child)) })
	require.NoError(t, loader.Unload(t.Context(), options(), true))

	dp, err := loader.Load(t.Context(), onCgroup(child))
	require.NoError(t, err)
	defer func() { require.NoError(t, loader.Unload(t.Context(), onCgroup(child), true)) }()
	require.NoError(t, dp.Close())
	requireRefused(t, loader.ErrOtherDatapath, func() error { return loadAndClose(t, options()) })
}

// Another that has maps of its own translates nothing that this one does.
func TestADatapathBelowWithMapsOfItsOwnIsNobodysBusiness(t *testing.T) {
	child := below(t)
	load(t, options())
	opts := onCgroup(child)
	opts.MapsDir = mapsDir + "-elsewhere"
	mustLoad(t, opts)
	defer func() { require.NoError(t, loader.Unload(t.Context(), opts, true)) }()
	require.Empty(t, codes(t, options()))
	require.Empty(t, codes(t, opts))
}

// The agent's pins were removed, and it started anew; or it started after us.
func TestAnAgentThatRunsBesideIsAProblem(t *testing.T) {
	load(t, options())
	idle(t, anchorings["links"])
	require.Equal(t, []string{loader.ProblemBeside}, codes(t, options()))
}

func TestALinkThatWasDetachedIsAProblemAndALoadMendsIt(t *testing.T) {
	load(t, options())
	for _, name := range []string{"revsk_post_bind4", "revsk_connect4"} {
		l, err := link.LoadPinnedLink(pinsDir+"/links/"+name, nil)
		require.NoError(t, err)
		require.NoError(t, l.Detach())
		require.NoError(t, l.Close())
	}
	require.Equal(t, []string{loader.ProblemLinkDetached}, codes(t, options()))
	mustLoad(t, options())
	require.Empty(t, codes(t, options()))
}

func TestAMapThatTheControlPlaneHasMadeAnewIsAProblemAndALoadMendsIt(t *testing.T) {
	load(t, options())
	services := mapsDir + "/cilium_lb4_services_v2"
	require.NoError(t, os.Remove(services))
	require.Equal(t, []string{loader.ProblemMapMissing}, codes(t, options()))
	pinMap(t, services, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 12, ValueSize: 12, MaxEntries: 777})
	require.Equal(t, []string{loader.ProblemMapReplaced}, codes(t, options()))
	mustLoad(t, options())
	require.Empty(t, codes(t, options()))
}

// It cannot be mended by a load, which would say so.
func TestAMapOfAnotherLayoutInPlaceOfOneInUse(t *testing.T) {
	load(t, options())
	services := mapsDir + "/cilium_lb4_services_v2"
	require.NoError(t, os.Remove(services))
	pinMap(t, services, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 12, ValueSize: 16, MaxEntries: 777})
	dp, err := loader.Open(options())
	if err == nil {
		defer dp.Close()
	}
	require.ErrorIs(t, err, loader.ErrLayout)
	requireRefused(t, loader.ErrLayout, func() error { return loadAndClose(t, options()) })
}

// Another process makes the maps anew while they are being loaded: no program is left that uses those of before.
func TestMapsThatAreReplacedDuringALoad(t *testing.T) {
	services := mapsDir + "/cilium_lb4_services_v2"
	for name, valueSize := range map[string]uint32{"same layout": 12, "another layout": 16} {
		t.Run(name, func(t *testing.T) {
			load(t, options())
			before := attached(t)
			replaced := false
			opts := options().WithStep(func(step string) error {
				if step == "load programs" {
					replaced = true
					require.NoError(t, os.Remove(services))
					pinMap(t, services, &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 12, ValueSize: valueSize, MaxEntries: 777})
				}
				return nil
			})
			require.ErrorIs(t, loadAndClose(t, opts), loader.ErrStale)
			require.True(t, replaced)
			require.Equal(t, before, attached(t))
			if valueSize == 12 {
				require.Equal(t, []string{loader.ProblemMapReplaced}, codes(t, options()))
				mustLoad(t, options())
				require.Empty(t, codes(t, options()))
			} else {
				requireRefused(t, loader.ErrLayout, func() error { return loadAndClose(t, options()) })
			}
		})
	}
}

func TestAFrozenMapOfTheLoadBalancerIsAProblem(t *testing.T) {
	dp := load(t, options())
	require.NoError(t, dp.Map("cilium_lb4_services_v2").Freeze())
	require.Equal(t, []string{loader.ProblemMapFrozen}, codes(t, options()))
	mustLoad(t, options())
	require.Equal(t, []string{loader.ProblemMapFrozen}, codes(t, options()))
}

// What programs use is pinned again, with what sockets remember in it.
func TestPinsThatWereRemovedAreAdopted(t *testing.T) {
	own := []string{"revsk_conn", "revsk_config", "revsk_peers", "revsk_metrics"}
	for name, test := range map[string]struct {
		takeover bool
		remove   func(t *testing.T)
	}{
		"maps": {false, func(t *testing.T) {
			for _, name := range own {
				require.NoError(t, os.Remove(filepath.Join(pinsDir, name)))
			}
		}},
		"links": {true, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(pinsDir+"/links"))
			require.Equal(t, []string{loader.ProblemLinkUnpinned}, codes(t, options()))
		}},
		"everything": {true, func(t *testing.T) { require.NoError(t, os.RemoveAll(pinsDir)) }},
	} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			opts := withMode(options(), loader.ModeDual)
			f := loader.DefaultFeatures()
			f.L7, f.NodePortMax = false, 31999
			opts.Features = &f
			if test.takeover {
				idle(t, anchorings["links"]) // whose pins keep the links
				opts.Takeover = true
			}
			mustLoad(t, opts)
			conn := connected(t)
			before := pins(t)
			test.remove(t)
			plan, err := loader.PlanLoad(t.Context(), options())
			require.NoError(t, err)
			require.NotContains(t, plan, loader.Change{Action: loader.ActionCreate, Object: pinsDir + "/revsk_conn"})
			s := mustLoad(t, options())
			require.True(t, s.Complete())
			require.Empty(t, s.Problems)
			require.Equal(t, loader.ModeDual, s.Mode)
			require.Equal(t, f, s.Features)
			requireOnce(t)
			require.Equal(t, serviceAddr, peer(t, conn))
			for _, name := range own {
				path := filepath.Join(pinsDir, name)
				require.Equal(t, before[path], pins(t)[path], "the map is the same")
			}
			again := options()
			again.Force = true
			require.NoError(t, loader.Unload(t.Context(), again, true))
		})
	}
}

// Programs that are pinned nowhere are found by an unload, too.
func TestUnloadDetachesWhatIsNotPinned(t *testing.T) {
	cleanUp(t)
	idle(t, anchorings["links"])
	mustLoad(t, takeover())
	require.NoError(t, os.RemoveAll(pinsDir+"/links"))
	opts := options()
	opts.Force = true
	require.NoError(t, loader.Unload(t.Context(), opts, true))
	for attach := range attached(t) {
		require.False(t, wantedByDefault(attach), attach)
	}
}

// A BPF file system can be written to by everybody, unless it was mounted otherwise.
func TestDirectoriesThatOthersMadeOrCanWriteToAreRefused(t *testing.T) {
	require.NoError(t, os.Chmod("/sys/fs/bpf", 0o777|os.ModeSticky))
	t.Cleanup(func() { require.NoError(t, os.Chmod("/sys/fs/bpf", 0o700)) })
	for name, prepare := range map[string]func(dir string) error{
		"owner": func(dir string) error { return os.Chown(dir, 65534, 65534) },
		"mode":  func(dir string) error { return os.Chmod(dir, 0o777) },
	} {
		for _, dir := range []string{pinsDir, mapsDir, filepath.Dir(mapsDir)} {
			t.Run(name+" "+filepath.Base(dir), func(t *testing.T) {
				cleanUp(t)
				require.NoError(t, os.MkdirAll(dir, 0o700))
				require.NoError(t, prepare(dir))
				requireRefused(t, loader.ErrUnsafeDir, func() error { return loadAndClose(t, options()) })
			})
		}
	}
	t.Run("the root", func(t *testing.T) {
		cleanUp(t)
		require.NoError(t, unix.Chmod("/sys/fs/bpf", 0o777))
		requireRefused(t, loader.ErrUnsafeDir, func() error { return loadAndClose(t, options()) })
		require.NoError(t, unix.Chmod("/sys/fs/bpf", 0o1777))
		mustLoad(t, options())
	})
}

// Sockets outlive the cgroup that they were made in, and keep their hooks.
func TestACgroupThatWasRemovedAndMadeAgain(t *testing.T) {
	cleanUp(t)
	child := filepath.Join(sandbox.Cgroup(), "child")
	require.NoError(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(child)) })
	enter := func(cgroup string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0))
	}
	opts := options()
	opts.Cgroup = child
	mustLoad(t, opts)
	enter(child)
	conn := connected(t)
	enter(sandbox.Cgroup())
	require.NoError(t, os.Remove(child))
	require.NoError(t, os.Mkdir(child, 0o755))
	require.Equal(t, []string{loader.ProblemCgroupRemoved}, codes(t, opts))

	injected := errors.New("injected")
	requireRefused(t, injected, func() error {
		_, err := loader.Load(t.Context(), opts.WithStep(func(step string) error {
			if step == "attach revsk_sendmsg6" {
				return injected
			}
			return nil
		}))
		return err
	})
	require.True(t, mustLoad(t, opts).Complete())
	require.Empty(t, codes(t, opts))
	require.Equal(t, serviceAddr, peer(t, conn))
	require.DirExists(t, pinsDir+"/removed_cgroups")

	require.NoError(t, conn.Close())
	// The kernel frees the socket, and with it the cgroup, some time later: then a load has no use for the
	// pins any more.
	for tries := 0; ; tries++ {
		mustLoad(t, opts)
		if _, err := os.Stat(pinsDir + "/removed_cgroups"); errors.Is(err, os.ErrNotExist) {
			break
		}
		require.Less(t, tries, 60, "the cgroup that was removed is there for ever")
		time.Sleep(time.Second)
	}
	require.NoError(t, loader.Unload(t.Context(), opts, true))
}

func TestPurgeLeavesWhatIsNotOurs(t *testing.T) {
	load(t, options())
	conn, links := pinsDir+"/revsk_conn", pinsDir+"/links"
	require.NoError(t, os.Remove(conn))
	pinMap(t, conn, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	pinMap(t, links+"/foreign", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	left := []string{}
	opts := options()
	opts.OnChange = func(c loader.Change) {
		if c.Action == loader.ActionLeave {
			left = append(left, c.Object)
		}
	}
	require.NoError(t, loader.Unload(t.Context(), opts, true))
	require.Equal(t, []string{links, conn, pinsDir}, left)
	require.FileExists(t, conn)
	require.FileExists(t, links+"/foreign")
	require.NoFileExists(t, pinsDir+"/revsk_peers")
	require.Empty(t, attached(t))
}
