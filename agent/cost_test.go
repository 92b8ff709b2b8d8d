// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

var idleTime = flag.Duration("agent.idle", 5*time.Second, "for how long the cost of an idle agent is measured")

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
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "VmRSS:")
	require.True(t, ok)
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kib >> 10
}

// large makes 10,000 services with 20,000 backends, and as many sockets as one process may have, up to 100,000.
func (n *node) large(sockets int) (opened int) {
	n.Helper()
	all := make([]lbmap.Service, 10_000)
	for i := range all {
		for k := range 2 {
			b := 2*i + k
			addr := netip.AddrFrom4([4]byte{127, byte(1 + b>>16), byte(b >> 8), byte(b)})
			all[i].Backends = append(all[i].Backends, lbmap.Backend{AddrPort: netip.AddrPortFrom(addr, 53), Protocol: lbmap.ProtocolUDP})
		}
		all[i].Frontend = front(i, lbmap.ProtocolUDP)
	}
	n.services(all...)
	var limit unix.Rlimit
	require.NoError(n, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	require.NoError(n, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	for opened < min(sockets, int(limit.Max)-1000) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(n, err)
		n.Cleanup(func() { unix.Close(fd) })
		to := all[opened%len(all)].Frontend.AddrPort
		require.NoError(n, unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}))
		opened++
	}
	return opened
}

// An agent that has nothing to do costs next to nothing, on a node with many services and sockets.
func TestIdleCost(t *testing.T) {
	n := newNode(t)
	agent := n.child(optionsDefault)
	stop := func() { _ = agent.Process.Kill(); _ = agent.Wait() }
	t.Cleanup(stop)
	awaits(t, "loaded", soon, func() bool { return n.program("connect4") != 0 && n.mode() == loader.ModeStorage })
	opened := n.large(100_000)
	time.Sleep(5 * time.Second) // what is new is looked at
	before, begin := processorTimeOf(t, agent.Process.Pid), time.Now()
	time.Sleep(*idleTime)
	used, took := processorTimeOf(t, agent.Process.Pid)-before, time.Since(begin)
	share := 100 * used.Seconds() / took.Seconds()
	resident := residentMiB(t, agent.Process.Pid)
	t.Logf("10,000 services, 20,000 backends, %d sockets: %.2f %% of a processor during %v, %d MiB", opened, share, took.Round(time.Second), resident)
	require.Less(t, share, 3.0)
	require.Less(t, resident, 64)
}

// A scrape reads what is known, whatever there is on the node.
func TestScrapeCost(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.Backends = 100
	r := n.start(opts)
	r.ready()
	opened := n.large(100_000)
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
	t.Logf("a scrape with %d sockets: %v", opened, fastest)
	require.Less(t, fastest, 20*time.Millisecond)
}
