// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

const serviceAddr = "10.96.0.10:53"

// addService makes a service in the pinned maps.
func addService(t *testing.T) {
	t.Helper()
	w, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer w.Close()
	front, err := lbmap.ParseFrontend(serviceAddr + "/udp")
	require.NoError(t, err)
	_, err = w.Upsert(t.Context(), lbmap.Service{Frontend: front, Backends: []lbmap.Backend{{
		AddrPort: netip.MustParseAddrPort("127.0.0.1:5353"), Protocol: lbmap.ProtocolUDP,
	}}})
	require.NoError(t, err)
}

// connected is a socket that is connected to a service.
func connected(t *testing.T) *net.UDPConn {
	t.Helper()
	addService(t)
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(serviceAddr)))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.Equal(t, serviceAddr, peer(t, conn))
	return conn
}

// peer is what the kernel says now, and not when the socket was connected.
func peer(t *testing.T, conn *net.UDPConn) string {
	t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	var name unix.Sockaddr
	require.NoError(t, raw.Control(func(fd uintptr) { name, err = unix.Getpeername(int(fd)) }))
	require.NoError(t, err)
	return sockaddr.AddrPort(name).String()
}

// requireRefused checks that something is refused and nothing has changed.
func requireRefused(t *testing.T, want error, act func() error) {
	t.Helper()
	before, programs := pins(t), attached(t)
	require.ErrorIs(t, act(), want)
	require.Equal(t, before, pins(t))
	require.Equal(t, programs, attached(t))
}

// The agent restarts on a node whose sockets remember what the hash lacks.
func TestHandBackAfterARestartOfTheAgentIsRefusedWhereTheHashLacksSomething(t *testing.T) {
	cleanUp(t)
	agent := idle(t, anchorings["links"])
	dp, err := loader.Load(t.Context(), withMode(takeover(), loader.ModeStorage))
	require.NoError(t, err)
	defer dp.Close()
	conn := connected(t)
	require.NoError(t, agent.Update(foreignLinks))
	requireRefused(t, loader.ErrHashIncomplete, func() error { return loader.HandBack(t.Context(), options()) })
	_, err = loader.PlanHandBack(t.Context(), options())
	require.ErrorIs(t, err, loader.ErrHashIncomplete)
	mustLoad(t, takeover())
	require.Equal(t, serviceAddr, peer(t, conn))
	require.NoError(t, conn.Close())
	require.NoError(t, loader.HandBack(t.Context(), options()))
}

func TestHandBackFromStorageIsRefusedWhileTheHashHasSomethingOutdated(t *testing.T) {
	cleanUp(t)
	idle(t, anchorings["links"])
	dp, err := loader.Load(t.Context(), withMode(takeover(), loader.ModeStorage))
	require.NoError(t, err)
	defer dp.Close()
	require.NoError(t, dp.Map("cilium_lb4_reverse_sk").Put(make([]byte, 16), make([]byte, 8)))
	requireRefused(t, loader.ErrHashIncomplete, func() error { return loader.HandBack(t.Context(), options()) })
}

// Counters know of tuples that nobody holds any more.
func TestAModeIsGuardedByWhatSocketsHoldAndNotByCounters(t *testing.T) {
	dp := load(t, options())
	var perCPU []uint64
	require.NoError(t, dp.Map("revsk_metrics").Lookup(uint32(0), &perCPU))
	perCPU[0] += 202
	require.NoError(t, dp.Map("revsk_metrics").Put(uint32(0), perCPU))
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeLegacy, false))
	require.NoError(t, dp.SetMode(t.Context(), loader.ModeStorage, false))
	conn := connected(t)
	perCPU[0] = 0
	require.NoError(t, dp.Map("revsk_metrics").Put(uint32(0), perCPU))
	require.ErrorIs(t, dp.SetMode(t.Context(), loader.ModeLegacy, false), loader.ErrUnsafeMode)
	require.Equal(t, serviceAddr, peer(t, conn))
}

func TestALoadMakesNoEmptyMapInPlaceOfOneInUse(t *testing.T) {
	load(t, options())
	addService(t)
	services := filepath.Join(mapsDir, "cilium_lb4_services_v2")
	require.NoError(t, os.Remove(services))
	requireRefused(t, loader.ErrMapsReplaced, func() error { return loadAndClose(t, options()) })
	_, err := loader.PlanLoad(t.Context(), options())
	require.ErrorIs(t, err, loader.ErrMapsReplaced)
}

// One without entries is of no use to anybody.
func TestALoadMakesAMapInPlaceOfAnEmptyOne(t *testing.T) {
	load(t, options())
	require.NoError(t, os.Remove(filepath.Join(mapsDir, "cilium_lb4_services_v2")))
	mustLoad(t, options())
}

func TestTakeoverOfProgramsWithoutAHashIsRefused(t *testing.T) {
	cleanUp(t)
	a, err := reference.Idle()
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	require.NoError(t, anchorings["links"](a))
	requireRefused(t, loader.ErrForeignProgram, func() error { return loadAndClose(t, takeover()) })
}

func TestADirectoryOrLinkInPlaceOfAPinIsNamed(t *testing.T) {
	for _, path := range []string{pinsDir + "/revsk_conn", mapsDir + "/cilium_lb4_services_v2", pinsDir + "/links/revsk_connect4"} {
		for name, put := range map[string]func(string) error{
			"directory": func(path string) error { return os.Mkdir(path, 0o700) },
			"link":      func(path string) error { return os.Symlink("/nowhere", path) },
		} {
			t.Run(name+" "+filepath.Base(path), func(t *testing.T) {
				cleanUp(t)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
				require.NoError(t, put(path))
				err := loadAndClose(t, options())
				require.ErrorIs(t, err, loader.ErrNotAPin)
				require.NotErrorIs(t, err, loader.ErrPermission)
				require.NoError(t, os.Remove(path))
			})
		}
	}
}

// What cannot be opened for want of /proc looks as if it did not exist.
func TestWithoutProcNothingIsTakenForAbsent(t *testing.T) {
	load(t, options())
	before, programs := pins(t), attached(t)
	require.NoError(t, unix.Mount("tmpfs", "/proc", "tmpfs", 0, ""))
	mounted := true
	unmount := func() {
		if mounted {
			require.NoError(t, unix.Unmount("/proc", unix.MNT_DETACH))
			mounted = false
		}
	}
	defer unmount()
	_, open := loader.Open(options())
	errs := map[string]error{
		"open": open, "load": loadAndClose(t, options()),
		"unload":    loader.Unload(t.Context(), options(), true),
		"hand back": loader.HandBack(t.Context(), options()),
	}
	unmount()
	for name, err := range errs {
		require.ErrorIs(t, err, loader.ErrNoProc, name)
		require.NotErrorIs(t, err, loader.ErrNotLoaded, name)
	}
	require.Equal(t, before, pins(t))
	require.Equal(t, programs, attached(t))
}

const fewFilesEnv = "REVSK_LOADER_TEST_FILES"

// runWithFewFiles is a process that may open few files and loads.
func runWithFewFiles() int {
	var n uint64
	fmt.Sscan(os.Getenv(fewFilesEnv), &n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
		return 1
	}
	_, err := loader.Load(context.Background(), options())
	fmt.Println(err)
	return 0
}

func TestFewDescriptorsAreNotTakenForAnythingElse(t *testing.T) {
	load(t, options())
	before := pins(t)
	for _, n := range []int{10, 16, 30, 60, 100} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", fewFilesEnv, n))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err)
		require.Contains(t, string(out), unix.EMFILE.Error(), n)
		require.NotContains(t, string(out), loader.ErrNotSupported.Error(), n)
		require.NotContains(t, string(out), loader.ErrLayout.Error(), n)
	}
	require.Equal(t, before, pins(t))
}

func TestOptionsWithoutAMeaningAreRefused(t *testing.T) {
	cleanUp(t)
	features := func(change func(*loader.Features)) loader.Options {
		f := loader.DefaultFeatures()
		change(&f)
		opts := options()
		opts.Features = &f
		return opts
	}
	for name, opts := range map[string]loader.Options{
		"no mode":   withMode(options(), loader.Mode(77)),
		"no family": features(func(f *loader.Features) { f.IPv4, f.IPv6 = false, false }),
		"no port":   features(func(f *loader.Features) { f.NodePortMin, f.NodePortMax = 3, 2 }),
	} {
		require.ErrorIs(t, loadAndClose(t, opts), loader.ErrInvalid, name)
		require.Empty(t, pins(t), name)
	}
}

func TestAnInvalidModeIsRefused(t *testing.T) {
	dp := load(t, options())
	require.ErrorIs(t, dp.SetMode(t.Context(), loader.Mode(77), true), loader.ErrInvalid)
}

func TestANilOrClosedDatapathReturnsErrors(t *testing.T) {
	closed := load(t, options())
	require.NoError(t, closed.Close())
	for name, dp := range map[string]*loader.Datapath{"nil": nil, "closed": closed} {
		_, mode := dp.Mode()
		_, counters := dp.Counters()
		_, status := dp.Status()
		_, hooks := dp.Hooks()
		_, lock := dp.Lock(t.Context())
		_, plan := dp.PlanMode(t.Context(), loader.ModeDual, false)
		for what, err := range map[string]error{
			"mode": mode, "counters": counters, "status": status, "hooks": hooks, "lock": lock, "plan": plan,
			"set mode": dp.SetMode(t.Context(), loader.ModeDual, false), "close": dp.Close(),
		} {
			require.ErrorIs(t, err, loader.ErrClosed, "%s, %s", name, what)
		}
		require.Nil(t, dp.Map("revsk_conn"), name)
	}
}

func TestADatapathThatWasReplacedIsStale(t *testing.T) {
	dp := load(t, options())
	require.NoError(t, loader.Unload(t.Context(), options(), true))
	require.ErrorIs(t, dp.SetMode(t.Context(), loader.ModeDual, false), loader.ErrStale)
	mustLoad(t, options())
	require.ErrorIs(t, dp.SetMode(t.Context(), loader.ModeDual, false), loader.ErrStale)
	_, err := dp.Lock(t.Context())
	require.ErrorIs(t, err, loader.ErrStale)
}

func TestWaitingForTheLock(t *testing.T) {
	load(t, options())
	dir, err := os.Open(pinsDir)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	opts := options()
	opts.Wait = 50 * time.Millisecond
	require.ErrorIs(t, loadAndClose(t, opts), loader.ErrLocked)
	opts.Wait = -1
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = loader.Load(ctx, opts)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, loader.ErrLocked)
}
