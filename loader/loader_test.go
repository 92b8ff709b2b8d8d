// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/passprog"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

func TestMain(m *testing.M) {
	if os.Getenv(fewFilesEnv) != "" {
		os.Exit(runWithFewFiles())
	}
	if os.Getenv(killAtEnv) != "" {
		os.Exit(runUntilKilled())
	}
	os.Exit(sandbox.TestMain(m.Run))
}

const (
	mapsDir = "/sys/fs/bpf/tc/globals"
	pinsDir = "/sys/fs/bpf/revsk"
)

func options() loader.Options {
	return loader.Options{Cgroup: sandbox.Cgroup(), LegacyMaxEntries: 128}
}

func withMode(o loader.Options, m loader.Mode) loader.Options {
	o.Mode = &m
	return o
}

// load loads and cleans up after the test, which starts and ends with an empty BPF file system.
func load(t *testing.T, opts loader.Options) *loader.Datapath {
	t.Helper()
	cleanUp(t)
	dp, err := loader.Load(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { dp.Close() })
	return dp
}

func cleanUp(t *testing.T) {
	t.Helper()
	require.Empty(t, pins(t), "left by an earlier test")
	t.Cleanup(func() {
		opts := options()
		opts.Force = true
		opts.Wait = time.Minute // a load that was given up may have been next in the queue, and gets the lock for a moment
		if err := loader.Unload(context.Background(), opts, true); !errors.Is(err, loader.ErrNotLoaded) && !errors.Is(err, loader.ErrLayout) {
			require.NoError(t, err)
		}
		entries, err := os.ReadDir("/sys/fs/bpf")
		require.NoError(t, err)
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ".debug" {
				continue
			}
			require.NoError(t, os.RemoveAll(filepath.Join("/sys/fs/bpf", e.Name())))
		}
		// The kernel detaches a link that is pinned no longer a moment later.
		require.Eventually(t, func() bool { return len(attached(t)) == 0 }, time.Minute, time.Millisecond, "a hook outlived its pin")
	})
}

// pins maps every path of the BPF file system to what is pinned there.
func pins(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		// maps.debug and progs.debug are the kernel's.
		if err != nil || path == "/sys/fs/bpf" || filepath.Ext(path) == ".debug" {
			return err
		}
		if d.IsDir() {
			found[path] = "directory"
			return nil
		}
		if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
			defer m.Close()
			info, err := m.Info()
			require.NoError(t, err)
			id, _ := info.ID()
			found[path] = fmt.Sprintf("map %d", id)
			return nil
		}
		if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
			defer p.Close()
			found[path] = fmt.Sprintf("program %d", programID(t, p))
			return nil
		}
		l, err := link.LoadPinnedLink(path, nil)
		require.NoError(t, err, path)
		defer l.Close()
		info, err := l.Info()
		require.NoError(t, err)
		found[path] = fmt.Sprintf("link %d of program %d", info.ID, info.Program)
		return nil
	})
	require.NoError(t, err)
	return found
}

var attachTypes = []ebpf.AttachType{
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	ebpf.AttachCgroupInetSockRelease,
	ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind,
}

// attached lists the ids of the programs on the sandbox's cgroup.
func attached(t *testing.T) map[ebpf.AttachType][]ebpf.ProgramID {
	t.Helper()
	cgroup, err := os.Open(sandbox.Cgroup())
	require.NoError(t, err)
	defer cgroup.Close()
	found := map[ebpf.AttachType][]ebpf.ProgramID{}
	for _, a := range attachTypes {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: a})
		require.NoError(t, err)
		for _, p := range res.Programs {
			found[a] = append(found[a], p.ID)
		}
	}
	return found
}

func programID(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	require.NoError(t, err)
	id, _ := info.ID()
	return id
}

// wantedHooks is how many hooks the default features want.
const wantedHooks = 11

// wantedByDefault tells whether a hook is attached with the default features.
func wantedByDefault(a ebpf.AttachType) bool {
	return a != ebpf.AttachCGroupInet4Bind && a != ebpf.AttachCGroupInet6Bind
}

func TestLoadAttachesEveryHookOnce(t *testing.T) {
	dp := load(t, options())
	status, err := dp.Status()
	require.NoError(t, err)
	require.True(t, status.Complete())
	require.Equal(t, loader.ModeStorage, status.Mode)
	requireOnce(t)
	requirePrivate(t)
}

// Health says what Status says, but counts only maps that evict entries.
func TestHealth(t *testing.T) {
	dp := load(t, options())
	want, err := dp.Status()
	require.NoError(t, err)
	counted := 0
	for i, m := range want.Maps {
		if m.Type == ebpf.Hash.String() || m.Type == ebpf.LPMTrie.String() {
			want.Maps[i].Entries = -1
		} else if m.Entries >= 0 {
			counted++
		}
	}
	require.NotZero(t, counted)
	got, err := dp.Health()
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// requirePrivate checks that nobody but the owner has access to the pins.
func requirePrivate(t *testing.T) {
	t.Helper()
	for path, what := range pins(t) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		want := fs.FileMode(0o600)
		if what == "directory" {
			want = 0o700
		}
		require.Equal(t, want, info.Mode().Perm(), path)
	}
}

func TestLoadAgainReplacesProgramsAndKeepsMaps(t *testing.T) {
	load(t, options())
	before, programs := pins(t), attached(t)
	dp, err := loader.Load(t.Context(), options())
	require.NoError(t, err)
	defer dp.Close()
	after := pins(t)
	require.Len(t, after, len(before))
	for path, what := range before {
		if filepath.Dir(path) == pinsDir+"/links" {
			require.NotEqual(t, what, after[path], "%s has its old program", path)
			continue
		}
		require.Equal(t, what, after[path], path)
	}
	requireOnce(t)
	for a, ids := range attached(t) {
		require.NotEqual(t, programs[a], ids, a)
	}
}

// requireOnce checks that one program is on every hook.
func requireOnce(t *testing.T) {
	t.Helper()
	found := attached(t)
	for _, a := range attachTypes {
		if wantedByDefault(a) || len(found[a]) > 0 {
			require.Len(t, found[a], 1, a)
		}
	}
}

func TestReadersAreReplacedBeforeWriters(t *testing.T) {
	cleanUp(t)
	var steps []string
	dp, err := loader.Load(t.Context(), options().WithStep(func(name string) error {
		steps = append(steps, name)
		return nil
	}))
	require.NoError(t, err)
	defer dp.Close()
	require.Equal(t, []string{
		"load programs", "switch to mode storage", "pin map revsk_config",
		"attach revsk_recvmsg4", "attach revsk_recvmsg6",
		"attach revsk_getpeername4", "attach revsk_getpeername6",
		"attach revsk_release",
		"attach revsk_connect4", "attach revsk_connect6",
		"attach revsk_sendmsg4", "attach revsk_sendmsg6",
		"attach revsk_post_bind4", "attach revsk_post_bind6",
		"keep the features", "done",
	}, steps[len(steps)-16:])
}

// changes are what a call changes of its own objects, in order; pins of maps left out.
func changes(opts loader.Options, call func(loader.Options) error) (made []loader.Change, err error) {
	opts.OnChange = func(c loader.Change) {
		switch c.Action {
		case loader.ActionAttach, loader.ActionReplace, loader.ActionDetach, loader.ActionSwitch:
			made = append(made, c)
		}
	}
	return made, call(opts)
}

func TestModeIsSwitchedBeforeTheFirstHookIsAttachedAndAfterTheLastIsReplaced(t *testing.T) {
	cleanUp(t)
	loads := func(opts loader.Options) error { return loadAndClose(t, opts) }
	first, err := changes(withMode(options(), loader.ModeDual), loads)
	require.NoError(t, err)
	require.Len(t, first, 1+wantedHooks)
	require.Equal(t, loader.Change{Action: loader.ActionSwitch, Object: "dual"}, first[0])
	again, err := changes(withMode(options(), loader.ModeStorage), loads)
	require.NoError(t, err)
	require.Len(t, again, 1+wantedHooks)
	require.Equal(t, loader.Change{Action: loader.ActionSwitch, Object: "storage"}, again[len(again)-1])
}

func TestWritersAreDetachedBeforeReaders(t *testing.T) {
	load(t, options())
	made, err := changes(options(), func(opts loader.Options) error { return loader.Unload(t.Context(), opts, false) })
	require.NoError(t, err)
	var detached []string
	for _, c := range made {
		detached = append(detached, c.Action+" "+c.Object)
	}
	require.Equal(t, []string{
		"detach revsk_post_bind6", "detach revsk_post_bind4",
		"detach revsk_sendmsg6", "detach revsk_sendmsg4",
		"detach revsk_connect6", "detach revsk_connect4",
		"detach revsk_release",
		"detach revsk_getpeername6", "detach revsk_getpeername4",
		"detach revsk_recvmsg6", "detach revsk_recvmsg4",
	}, detached)
}

func anyStep(string) bool { return true }

// failAtEachStep calls f again and again, each time failing at a later one of the steps that count, until
// it succeeds, and checks that what failed has left everything as it was.
func failAtEachStep(t *testing.T, counts func(step string) bool, atLeast int, opts loader.Options, f func(*testing.T, loader.Options) error) {
	t.Helper()
	injected := errors.New("injected")
	opts.Programs = new(loader.Programs) // verified once, if the maps stay
	defer func() { require.NoError(t, opts.Programs.Close()) }()
	before, programs := withoutLinks(pins(t)), attached(t) // what was detached is attached again in new links
	for failAt := 0; ; failAt++ {
		var n int
		var failed string
		err := f(t, opts.WithStep(func(step string) error {
			if !counts(step) {
				return nil
			}
			if n++; n > failAt {
				failed = step
				return injected
			}
			return nil
		}))
		if failed == "" {
			require.NoError(t, err)
			require.GreaterOrEqual(t, failAt, atLeast, "steps")
			return
		}
		require.ErrorIs(t, err, injected)
		require.Equal(t, before, withoutLinks(pins(t)), "failed at %s", failed)
		require.Equal(t, programs, attached(t), "failed at %s", failed)
	}
}

// A failure at any step leaves what ran before running: nothing, an older load, or a half one.
func TestFailureAtAnyStepChangesNothing(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T){
		"nothing ran": func(t *testing.T) { cleanUp(t) },
		"a datapath ran": func(t *testing.T) {
			load(t, withMode(options(), loader.ModeDual))
		},
		"half a datapath ran": func(t *testing.T) {
			load(t, withMode(options(), loader.ModeDual))
			require.NoError(t, os.Remove(pinsDir+"/revsk_tab_512"))
			for _, name := range []string{"revsk_release", "revsk_connect6"} {
				l, err := link.LoadPinnedLink(pinsDir+"/links/"+name, nil)
				require.NoError(t, err)
				require.NoError(t, errors.Join(l.Detach(), l.Unpin(), l.Close()))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			prepare(t)
			opts := withMode(options(), loader.ModeLegacy)
			opts.Force = true
			failAtEachStep(t, anyStep, 10, opts, loadAndClose)
		})
	}
}

func TestHooksThatALoadDetachesAreBackIfItFails(t *testing.T) {
	load(t, options())
	before := attached(t)
	f := loader.DefaultFeatures()
	f.NodePort = false
	opts := options()
	opts.Features = &f
	injected := errors.New("injected")
	failing := opts.WithStep(func(step string) error {
		if step == "detach revsk_post_bind6" {
			return injected
		}
		return nil
	})
	require.ErrorIs(t, loadAndClose(t, failing), injected)
	require.Equal(t, before, attached(t))
	require.FileExists(t, pinsDir+"/links/revsk_post_bind4")
	require.NoError(t, loadAndClose(t, opts))
	require.Empty(t, attached(t)[ebpf.AttachCGroupInet4PostBind])
}

// What was detached is attached again, in new links.
func TestFailureAtAnyStepOfAnUnloadChangesNothing(t *testing.T) {
	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprintf("purge %v", purge), func(t *testing.T) {
			dp := load(t, options())
			conn := connected(t)
			before := withoutLinks(pins(t))
			programs := attached(t)
			for failAt := 0; ; failAt++ {
				n, failed := 0, ""
				err := loader.Unload(t.Context(), options().WithStep(func(step string) error {
					if n++; n > failAt {
						failed = step
						return errors.New("injected")
					}
					return nil
				}), purge)
				if failed == "" {
					require.NoError(t, err)
					require.Greater(t, failAt, 20)
					break
				}
				require.ErrorContains(t, err, "injected")
				require.NotErrorIs(t, err, loader.ErrPartlyDone)
				require.Equal(t, before, withoutLinks(pins(t)), "failed at %s", failed)
				require.Equal(t, programs, attached(t), "failed at %s", failed)
				require.True(t, status(t, dp).Complete())
				require.Equal(t, serviceAddr, peer(t, conn), "failed at %s", failed)
			}
			require.Empty(t, attached(t))
		})
	}
}

// withoutLinks are the pins without the ids of links, which are others when they were made again.
func withoutLinks(found map[string]string) map[string]string {
	for path, what := range found {
		if _, of, ok := strings.Cut(what, " of "); ok {
			found[path] = "link of " + of
		}
	}
	return found
}

// The last thing that can fail: a hook that is not wanted any more, whose link is not what its name says.
func TestFailureAfterTheModeIsSwitchedSwitchesBack(t *testing.T) {
	f := loader.DefaultFeatures()
	f.HealthCheck = true
	opts := withMode(options(), loader.ModeDual)
	opts.Features = &f
	dp := load(t, opts)
	links := pinsDir + "/links/"
	swap := func() {
		require.NoError(t, os.Rename(links+"revsk_bind4", links+"aside"))
		require.NoError(t, os.Rename(links+"revsk_bind6", links+"revsk_bind4"))
		require.NoError(t, os.Rename(links+"aside", links+"revsk_bind6"))
	}
	swap()
	t.Cleanup(swap)
	before, programs := pins(t), attached(t)
	f.HealthCheck = false
	_, err := loader.Load(t.Context(), withMode(opts, loader.ModeStorage))
	require.ErrorIs(t, err, loader.ErrForeignLink)
	require.Equal(t, before, pins(t))
	require.Equal(t, programs, attached(t))
	mode, err := dp.Mode()
	require.NoError(t, err)
	require.Equal(t, loader.ModeDual, mode)
}

func TestCancelledContextChangesNothing(t *testing.T) {
	cleanUp(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := loader.Load(ctx, options().WithStep(func(step string) error {
		if step == "attach revsk_connect4" {
			cancel()
		}
		return nil
	}))
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, pins(t))
	require.Empty(t, attached(t))
}

func pinMap(t *testing.T, path string, spec *ebpf.MapSpec) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	m, err := ebpf.NewMap(spec)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Pin(path))
}

func TestForeignSizeAndFlagsAreTakenAsTheyAre(t *testing.T) {
	cleanUp(t)
	pinMap(t, mapsDir+"/cilium_lb4_services_v2",
		&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 12, ValueSize: 12, MaxEntries: 777})
	pinMap(t, mapsDir+"/cilium_lb4_reverse_sk",
		&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 4242, Flags: unix.BPF_F_NO_COMMON_LRU})
	before := pins(t)
	dp, err := loader.Load(t.Context(), options())
	require.NoError(t, err)
	defer dp.Close()
	require.EqualValues(t, 777, dp.Map("cilium_lb4_services_v2").MaxEntries())
	require.EqualValues(t, 4242, dp.Map("cilium_lb4_reverse_sk").MaxEntries())
	for path, what := range before {
		require.Equal(t, what, pins(t)[path])
	}
}

func TestOtherLayoutIsRefused(t *testing.T) {
	sameSize := &btf.Struct{Name: "revsk_conn_value", Size: 56, Members: []btf.Member{
		{Name: "tuple", Type: &btf.Array{Type: &btf.Int{Name: "char", Size: 1}, Index: &btf.Int{Name: "int", Size: 4}, Nelems: 56}},
	}}
	u32 := &btf.Int{Name: "__u32", Size: 4}
	for name, tc := range map[string]struct {
		path string
		spec *ebpf.MapSpec
	}{
		"services with other keys": {mapsDir + "/cilium_lb4_services_v2",
			&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 12, MaxEntries: 1}},
		"legacy hash that is no LRU": {mapsDir + "/cilium_lb6_reverse_sk",
			&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 32, ValueSize: 20, MaxEntries: 1}},
		"storage of another size": {pinsDir + "/revsk_conn",
			&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 56 + 8, Flags: unix.BPF_F_NO_PREALLOC, Key: u32,
				Value: &btf.Struct{Name: "revsk_conn_value", Size: 64, Members: []btf.Member{{Name: "a", Type: &btf.Int{Name: "long", Size: 8}}}}}},
		"storage of a later version": {pinsDir + "/revsk_conn_v2",
			&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 56, Flags: unix.BPF_F_NO_PREALLOC, Key: u32, Value: sameSize}},
		"storage with other fields": {pinsDir + "/revsk_conn",
			&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 56, Flags: unix.BPF_F_NO_PREALLOC, Key: u32, Value: sameSize}},
	} {
		t.Run(name, func(t *testing.T) {
			cleanUp(t)
			pinMap(t, tc.path, tc.spec)
			if tc.spec.Type == ebpf.SkStorage {
				giveValue(t, tc.path)
			}
			before := pins(t)
			_, err := loader.Load(t.Context(), options())
			require.ErrorIs(t, err, loader.ErrLayout)
			require.ErrorContains(t, err, tc.path)
			require.Equal(t, before, pins(t))
			require.Empty(t, attached(t))
		})
	}
}

// giveValue gives a socket a value in a map.
func giveValue(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	m, err := ebpf.LoadPinnedMap(path, nil)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Put(uint32(fd), make([]byte, m.ValueSize())))
}

// What another release has left is of no use to anybody.
func TestAMapOfAnotherVersionWithoutValuesIsRemoved(t *testing.T) {
	cleanUp(t)
	path := pinsDir + "/revsk_conn_v7"
	pinMap(t, path, &ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Name: "__u32", Size: 4}, Value: &btf.Int{Name: "__u64", Size: 8}})
	mustLoad(t, options())
	require.NoFileExists(t, path)
}

func TestTwoLoadersAtOnce(t *testing.T) {
	cleanUp(t)
	var inner, waited error
	done := make(chan struct{})
	_, err := loader.Load(t.Context(), options().WithStep(func(step string) error {
		if step != "attach revsk_connect4" {
			return nil
		}
		_, inner = loader.Load(t.Context(), options())
		go func() {
			defer close(done)
			opts := options()
			opts.Wait = -1
			_, waited = loader.Load(context.Background(), opts)
		}()
		time.Sleep(50 * time.Millisecond)
		select {
		case <-done:
			return errors.New("the second loader did not wait")
		default:
			return nil
		}
	}))
	require.NoError(t, err)
	require.ErrorIs(t, inner, loader.ErrLocked)
	<-done
	require.NoError(t, waited)
}

func TestPlacesAreChecked(t *testing.T) {
	cleanUp(t)
	opts := options()
	opts.PinsDir = t.TempDir() + "/revsk"
	_, err := loader.Load(t.Context(), opts)
	require.ErrorIs(t, err, loader.ErrNoBPFFS)
	opts = options()
	opts.Cgroup = t.TempDir()
	_, err = loader.Load(t.Context(), opts)
	require.ErrorIs(t, err, loader.ErrNoCgroup2)
	_, err = loader.Open(options())
	require.ErrorIs(t, err, loader.ErrNotLoaded)
	require.ErrorIs(t, loader.Unload(t.Context(), options(), false), loader.ErrNotLoaded)
	require.Empty(t, pins(t))
}

func TestForeignLinkIsRefused(t *testing.T) {
	load(t, options())
	links := pinsDir + "/links/"
	l, err := link.LoadPinnedLink(links+"revsk_connect4", nil)
	require.NoError(t, err)
	require.NoError(t, l.Detach(), "or the program leaves some time after the pin")
	require.NoError(t, l.Unpin())
	require.NoError(t, l.Close())
	require.NoError(t, os.Rename(links+"revsk_connect6", links+"revsk_connect4"))
	t.Cleanup(func() { require.NoError(t, os.Rename(links+"revsk_connect4", links+"revsk_connect6")) })
	before, programs := pins(t), attached(t)
	_, err = loader.Load(t.Context(), options())
	require.ErrorIs(t, err, loader.ErrForeignLink)
	require.Equal(t, before, pins(t))
	require.Equal(t, programs, attached(t))
}

func TestExclusiveProgramIsReported(t *testing.T) {
	cleanUp(t)
	prog := passprog.Connect4(t)
	cgroup, err := os.Open(sandbox.Cgroup())
	require.NoError(t, err)
	defer cgroup.Close()
	attach := link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect}
	require.NoError(t, link.RawAttachProgram(attach))
	defer func() {
		require.NoError(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: attach.Target, Program: prog, Attach: attach.Attach}))
	}()
	programs := attached(t)
	_, err = loader.Load(t.Context(), options())
	require.ErrorIs(t, err, loader.ErrExclusive)
	require.Empty(t, pins(t))
	require.Equal(t, programs, attached(t))
}

func TestHooksOfAFeatureComeAndGoWithIt(t *testing.T) {
	load(t, options())
	f := loader.DefaultFeatures()
	f.NodePort, f.HealthCheck = false, true
	opts := options()
	opts.Features = &f
	dp, err := loader.Load(t.Context(), opts)
	require.NoError(t, err)
	defer dp.Close()
	require.Empty(t, attached(t)[ebpf.AttachCGroupInet4PostBind])
	require.NoFileExists(t, pinsDir+"/links/revsk_post_bind4")
	require.FileExists(t, pinsDir+"/links/revsk_bind6")
	require.NotNil(t, dp.Map("cilium_lb4_health"))
	status, err := dp.Status()
	require.NoError(t, err)
	require.True(t, status.Complete())
}

func TestUnloadKeepsMapsUntilPurge(t *testing.T) {
	load(t, options())
	require.NoError(t, loader.Unload(t.Context(), options(), false))
	require.Empty(t, attached(t))
	require.Contains(t, pins(t), pinsDir+"/revsk_conn")
	require.NoError(t, loader.Unload(t.Context(), options(), true))
	require.NotContains(t, pins(t), pinsDir)
	require.Contains(t, pins(t), mapsDir+"/cilium_lb4_services_v2")
}

// What sockets remember from before a time without hooks, or without one of them, is doubtful.
func TestTheMarkIsSetAfterATimeWithoutHooks(t *testing.T) {
	dp := load(t, options())
	mark := func() (mark uint32) {
		var cfg sock.SockRevskConfigValue
		require.NoError(t, dp.Map(sock.SockMapRevskConfig).Lookup(uint32(0), &cfg))
		return cfg.Mark
	}
	require.Zero(t, mark(), "there is nothing from before")
	require.NoError(t, loadAndClose(t, options()))
	require.Zero(t, mark(), "the hooks have been there all the time")

	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	before := uint32(time.Duration(ts.Nano()) / revnat.TimeUnit)
	require.NoError(t, loader.Unload(t.Context(), options(), false))
	require.NoError(t, loadAndClose(t, options()))
	first := mark()
	require.GreaterOrEqual(t, first, before)
	require.Less(t, first, before+60)
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeDual, true))
	require.Equal(t, first, mark(), "a switch of the mode keeps it")

	time.Sleep(2 * revnat.TimeUnit)
	l, err := link.LoadPinnedLink(pinsDir+"/links/revsk_connect6", nil)
	require.NoError(t, err)
	require.NoError(t, errors.Join(l.Detach(), l.Unpin(), l.Close()))
	_, err = loader.PlanLoad(t.Context(), options())
	require.NoError(t, err)
	require.Equal(t, first, mark(), "a plan changes nothing")
	require.Error(t, loadAndClose(t, options().WithStep(func(name string) error {
		if name == "attach revsk_connect4" {
			return errors.New("a failure")
		}
		return nil
	})))
	require.Equal(t, first, mark(), "a load that fails leaves it")
	require.NoError(t, loadAndClose(t, options()))
	require.Greater(t, mark(), first)
}

// A link lives on with whoever has it open; its program must not run on.
func TestUnloadDetachesALinkThatIsOpenElsewhere(t *testing.T) {
	load(t, options())
	l, err := link.LoadPinnedLink(pinsDir+"/links/revsk_connect4", nil)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, loader.Unload(t.Context(), options(), false))
	require.Empty(t, attached(t))
}

func TestModeIsSwitchedOnlyWhereNothingIsForgotten(t *testing.T) {
	dp := load(t, options())
	mode := func() loader.Mode {
		m, err := dp.Mode()
		require.NoError(t, err)
		return m
	}
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeLegacy, false))
	require.Equal(t, loader.ModeLegacy, mode())
	require.NoError(t, dp.Map("cilium_lb4_reverse_sk").Put(make([]byte, 16), make([]byte, 8)))
	require.ErrorIs(t, dp.SetMode(t.Context(), loader.ModeStorage, false), loader.ErrUnsafeMode)
	require.Equal(t, loader.ModeLegacy, mode())
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeDual, false))
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeStorage, true))
	require.Equal(t, loader.ModeStorage, mode())
}

// On a node whose hash holds entries the first load must not forget them.
func TestAFrozenMapIsNotTakenForAMissingCapability(t *testing.T) {
	dp := load(t, options())
	require.NoError(t, dp.Map("revsk_config").Freeze())
	err := dp.SetMode(t.Context(), loader.ModeLegacy, false)
	require.ErrorIs(t, err, loader.ErrFrozen)
	require.NotErrorIs(t, err, loader.ErrPermission)
}

func TestFirstLoadOverEntriesIsDual(t *testing.T) {
	cleanUp(t)
	pinMap(t, mapsDir+"/cilium_lb4_reverse_sk", &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 16,
		Contents: []ebpf.MapKV{{Key: make([]byte, 16), Value: make([]byte, 8)}}})
	_, err := loader.Load(t.Context(), withMode(options(), loader.ModeStorage))
	require.ErrorIs(t, err, loader.ErrUnsafeMode)
	require.Empty(t, attached(t))
	dp, err := loader.Load(t.Context(), options())
	require.NoError(t, err)
	defer dp.Close()
	mode, err := dp.Mode()
	require.NoError(t, err)
	require.Equal(t, loader.ModeDual, mode)
}

// A first load that is killed leaves nothing that the next one takes for a decision.
func TestFirstLoadAfterAKilledOneDecidesTheMode(t *testing.T) {
	for _, at := range []string{"create map revsk_peers", "load programs", "attach revsk_recvmsg4", "attach revsk_sendmsg6"} {
		t.Run(at, func(t *testing.T) {
			cleanUp(t)
			pinMap(t, mapsDir+"/cilium_lb4_reverse_sk", &ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: 16,
				Contents: []ebpf.MapKV{{Key: make([]byte, 16), Value: make([]byte, 8)}}})
			killedAt(t, options(), at)
			dp, err := loader.Load(t.Context(), options())
			require.NoError(t, err)
			defer dp.Close()
			status, err := dp.Status()
			require.NoError(t, err)
			require.Equal(t, loader.ModeDual, status.Mode)
			require.True(t, status.Complete())
		})
	}
}

// killedAt loads up to a step, and ends there as by a signal: nothing is taken back.
func killedAt(t *testing.T, opts loader.Options, at string) {
	t.Helper()
	reached := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		dp, err := loader.Load(context.Background(), opts.WithStep(func(step string) error {
			if step == at {
				reached = true
				runtime.Goexit()
			}
			return nil
		}))
		t.Errorf("the load has come to an end: %v, %v", dp, err)
	}()
	<-done
	require.True(t, reached, at)
}

// Counters are appended: the pinned map of an older release has fewer, and lives on.
func TestCountersThatThePinnedMapLacksAreZero(t *testing.T) {
	cleanUp(t)
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	u64 := &btf.Typedef{Name: "__u64", Type: &btf.Int{Name: "unsigned long long", Size: 8}}
	pinMap(t, pinsDir+"/revsk_metrics", &ebpf.MapSpec{
		Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 13,
		Key: &btf.Typedef{Name: "__u32", Type: u32}, Value: u64,
	})
	dp, err := loader.Load(t.Context(), options())
	require.NoError(t, err)
	defer dp.Close()
	counters, err := dp.Counters()
	require.NoError(t, err)
	require.Zero(t, counters)
}
