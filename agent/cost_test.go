// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

var idleTime = flag.Duration("agent.idle", 5*time.Second, "for how long the cost of an idle agent is measured")

var idleSockets = flag.Int("agent.sockets", 20_000, "beside how many sockets the cost of an idle agent is measured")

// clockTick is USER_HZ.
const clockTick = 10 * time.Millisecond

// processorTimeOf is what a process has used.
func processorTimeOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	fields := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
	user, err := strconv.Atoi(fields[11])
	require.NoError(t, err)
	system, err := strconv.Atoi(fields[12])
	require.NoError(t, err)
	return time.Duration(user+system) * clockTick
}

func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	return memoryMiB(t, pid, "VmRSS")
}

// memoryMiB is one of the figures that /proc has of a process.
func memoryMiB(t *testing.T, pid int, figure string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), figure+":")
	require.True(t, ok)
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kib >> 10
}

// large makes 10,000 services with 20,000 backends, and sockets that are connected to them, in processes of their own.
func (n *node) large(sockets int) {
	n.Helper()
	all := make([]lbmap.Service, largeServices)
	for i := range all {
		for k := range 2 {
			all[i].Backends = append(all[i].Backends, largeBackend(2*i+k))
		}
		all[i].Frontend = front(i, lbmap.ProtocolUDP)
	}
	n.services(all...)
	for ; sockets > 0; sockets -= mostHeld {
		n.hold(min(sockets, mostHeld))
	}
}

func largeBackend(i int) lbmap.Backend {
	addr := netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
	return lbmap.Backend{AddrPort: netip.AddrPortFrom(addr, 53), Protocol: lbmap.ProtocolUDP}
}

const (
	largeServices = 10_000
	mostHeld      = 18_000 // by a process, which may have 20,000 files
)

// hold starts a process that holds sockets, and waits until it has them.
func (n *node) hold(sockets int) {
	n.Helper()
	cmd := n.command(holdSockets)
	cmd.Env = append(cmd.Env, holdEnv+"="+strconv.Itoa(sockets))
	cmd.Stdout = nil
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.StdoutPipe()
	require.NoError(n, err)
	n.launch(cmd)
	n.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err = io.ReadFull(out, make([]byte, 1)); err != nil {
		require.NoError(n, errors.Join(err, cmd.Wait()), "%s", &words)
	}
}

const holdEnv = childEnv + "_HOLD"

// runHolder connects sockets to the services of [node.large], and holds them.
func runHolder() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1
	}
	limit.Cur = limit.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	wanted, _ := strconv.Atoi(os.Getenv(holdEnv))
	for i := range wanted {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			// One address has too few ports for all.
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, byte(os.Getpid() >> 8), byte(os.Getpid())}})
		}
		if err == nil {
			err = unix.Connect(fd, sockaddr.Of(unix.AF_INET, front(i%largeServices, lbmap.ProtocolUDP).AddrPort))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	fmt.Print(".")
	time.Sleep(time.Hour)
	return 0
}

// frugal is what the command does, too.
func frugal() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(40)
}

// An agent that has nothing to do costs next to nothing, on a node with many services and sockets.
func TestIdleCost(t *testing.T) {
	n := newNode(t)
	agent := n.loadedChild()
	stop := func() { _ = agent.Process.Kill(); _ = agent.Wait() }
	t.Cleanup(stop)
	n.large(*idleSockets)
	time.Sleep(5 * time.Second) // what is new is looked at
	before, begin := processorTimeOf(t, agent.Process.Pid), time.Now()
	time.Sleep(*idleTime)
	used, took := processorTimeOf(t, agent.Process.Pid)-before, time.Since(begin)
	share := 100 * used.Seconds() / took.Seconds()
	resident := residentMiB(t, agent.Process.Pid)
	t.Logf("10,000 services, 20,000 backends, %d sockets: %.2f %% of a processor during %v, %d MiB", *idleSockets, share, took.Round(time.Second), resident)
	// A backend goes, of one of the services.
	c := n.client(front(0, lbmap.ProtocolUDP))
	without := lbmap.Service{Frontend: front(0, lbmap.ProtocolUDP)}
	goes := n.backendOf(c)
	for k := range 2 {
		if b := largeBackend(k); b.AddrPort != goes {
			without.Backends = append(without.Backends, b)
		}
	}
	_, err := n.writer.Upsert(t.Context(), without)
	require.NoError(t, err)
	reaction := awaits(t, "the socket ends", soon, c.isEnded)
	t.Logf("a socket ended %v after its backend went", reaction.Round(time.Millisecond))
	require.Less(t, share, 3.0) // on a machine that is busy
	if !withRaceDetector() {
		require.Less(t, resident, 48)
	}
}

// withRaceDetector says whether this test, and with it the agent that it starts, was built with the race detector, which takes
// memory for itself.
func withRaceDetector() bool {
	build, _ := debug.ReadBuildInfo()
	return slices.Contains(build.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// A scrape reads what is known, whatever there is on the node.
func TestScrapeCost(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.Backends = 100
	r := n.start(opts)
	r.ready()
	n.large(*idleSockets)
	s := newSurveyor(r.Agent)
	defer s.close()
	s.survey(t.Context(), r.options())
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(r))
	fastest := time.Hour
	for range 10 {
		begin := time.Now()
		_, err := registry.Gather()
		require.NoError(t, err)
		fastest = min(fastest, time.Since(begin))
	}
	t.Logf("a scrape with %d sockets: %v", *idleSockets, fastest)
	require.Less(t, fastest, 20*time.Millisecond)
}
