// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// Applications open and close as many sockets as the machine can, and check every answer, while whatever revsk can do
// is done beside them. In the end exactly the sockets that are open hold tuples, and nothing else is left.
func TestLoad(t *testing.T) {
	for _, part := range []struct {
		name  string
		steps []step
	}{
		{"alone", alone},
		{"beside an agent", besideAnAgent},
	} {
		t.Run(strings.ReplaceAll(part.name, " ", "-"), func(t *testing.T) { underLoad(t, part.name, part.steps) })
	}
}

// step is something that is done while applications go on.
type step func(n *node)

func command(line string) step {
	return func(n *node) {
		n.Helper()
		// Sockets that are in flight between processes while a migration looks for them are found by a later one.
		for range 20 {
			o := n.run(words(line)...)
			if o.code == 0 {
				return
			}
			if o.code != 3 || !slices.Contains([]string{"migrate", "load", "terminate"}, words(line)[0]) {
				n.Errorf("%s: %v", line, o)
				return
			}
		}
		n.Errorf("%s leaves something for ever", line)
	}
}

// terminate ends the sockets of the service that is there for it. Those that connect again and again are reported.
func terminate(n *node) {
	n.Helper()
	for _, v6 := range []bool{false, true} {
		for _, protocol := range []string{"tcp", "udp"} {
			args := []string{"terminate", loadBackend(v6, 0).String() + "/" + protocol, "--service", loadService(v6, doomedService).String(), "--quiet"}
			if o := n.run(args...); o.code != 0 && o.code != 3 {
				n.Errorf("%v: %v", args, o)
			}
		}
	}
}

func restartAgent(n *node) {
	n.Helper()
	again, err := reference.Hash(mapsDir)
	require.NoError(n, err)
	require.NoError(n, again.Update(linksDir))
	require.NoError(n, n.agent.Exit())
	n.agent = again
}

var alone = []step{
	command("status"), command("list --quiet"), command("load"), terminate, command("mode dual"), command("load --nodeport=false"),
	command("migrate"), command("migrate --to mirror"), command("list -o json"), terminate, command("load --nodeport"),
	command("mode dual"), command("migrate --engine pidfd"), command("migrate --dry-run"), command("rollback --dry-run"),
}

var besideAnAgent = []step{
	command("load --takeover"), command("status"), terminate, restartAgent, command("load --takeover"), command("list -o json"),
	command("load"), command("migrate --to storage"), terminate, command("load"), command("migrate --to mirror"), restartAgent,
	command("load --takeover"), command("rollback"), command("migrate"), command("unload --hand-back"),
}

func underLoad(t *testing.T, name string, steps []step) {
	n := newNode(t)
	n.clean()
	setUpLoadNetwork(t)
	startLoadServers(t)
	warnings := kernelWarnings(t)

	if name != "alone" {
		n.startAgent()
	} else {
		n.must("load")
	}
	services, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer services.Close()
	publishLoad(t, services)
	before := resourcesOf(t)
	before.memory, err = sandbox.AtRest(sandbox.KernelMemory)
	require.NoError(t, err)
	var counters loader.Counters
	if name == "alone" {
		counters = n.counters()
	}

	crew := startWorkers(t, 2)
	begin := time.Now()
	until := begin.Add(*duration)
	ctx, cancel := context.WithCancel(t.Context())
	var changes, killed atomic.Int64
	finished := make(chan error, 2)
	go func() { finished <- changeServices(ctx, services, &changes) }()
	go func() { finished <- killLingerers(ctx, &killed) }()
	done := 0
	for time.Now().Before(until) && !t.Failed() {
		steps[done%len(steps)](n)
		done++
	}
	all := crew.stop(t)
	took := time.Since(begin)
	cancel()
	for range 2 {
		assert.NoError(t, <-finished)
	}
	assert.Empty(t, all.Wrong)

	if name == "alone" {
		n.must("mode", "storage", "--force")
	} else {
		n.must("load", "--takeover")
		n.must("migrate", "--to", "storage")
	}
	kept := slices.Clone(all.Kept)
	assert.ElementsMatch(t, kept, n.listed(), "sockets that hold tuples, and those that are connected to a service")
	crew.end(t)
	assert.Empty(t, n.listed(), "sockets that hold tuples when all are closed")
	if name == "alone" {
		now := n.counters()
		assert.Equal(t, counters.Live(), now.Live(), "tuples that were stored and not released: %+v", now)
	}
	if name != "alone" {
		n.must("unload", "--hand-back")
	}
	assert.Empty(t, newWarnings(t, warnings))
	before.assertBack(t)

	lives := sum(all.Lives) + int(killed.Load())*lingererAmount
	perMinute := int(float64(lives) / took.Minutes())
	figure(t, "load "+name, "%s sockets in %.0f s (%s a minute): %s; %s by %d processes that were killed. %s answers were checked, and all were right. "+
		"%s sockets noticed that they were terminated. Beside it %d commands, and %s changes of services.",
		thousands(lives), took.Seconds(), thousands(perMinute), all.describe(), thousands(int(killed.Load())*lingererAmount), killed.Load(),
		thousands(all.Answers), thousands(all.Ended), done, thousands(int(changes.Load())))
}

func setUpLoadNetwork(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	_, network, err := net.ParseCIDR("fd00:1::/64")
	require.NoError(t, err)
	require.NoError(t, netlink.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: network, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}))
	// Closed connections keep their ports and memory for a minute.
	for name, value := range map[string]string{"ip_local_port_range": "10000 65535", "tcp_max_tw_buckets": "2000"} {
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0))
	}
}

// startLoadServers serves all backends: datagrams of UDP and UDP-Lite, and streams of TCP and MPTCP.
func startLoadServers(t *testing.T) {
	t.Helper()
	for n := range loadBackends {
		for _, v6 := range []bool{false, true} {
			at := loadBackend(v6, n)
			domain := unix.AF_INET
			if v6 {
				domain = unix.AF_INET6
			}
			protocols := []int{unix.IPPROTO_UDP}
			if !v6 {
				protocols = append(protocols, unix.IPPROTO_UDPLITE)
			}
			for _, protocol := range protocols {
				serveDatagrams(t, domain, protocol, at)
			}
			config := net.ListenConfig{Control: freebind}
			config.SetMultipathTCP(true)
			l, err := config.Listen(context.Background(), "tcp", at.String())
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if errors.Is(err, net.ErrClosed) {
						return
					} else if err == nil {
						go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
					}
				}
			}()
		}
	}
}

func freebind(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
	})
}

func serveDatagrams(t *testing.T, domain, protocol int, at netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if protocol == unix.IPPROTO_UDPLITE && errors.Is(err, unix.EPROTONOSUPPORT) {
		return
	}
	require.NoError(t, err)
	if domain == unix.AF_INET6 {
		require.NoError(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
	}
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20))
	require.NoError(t, unix.Bind(fd, sockaddr.Of(domain, at)))
	require.NoError(t, unix.SetNonblock(fd, true))
	conn := os.NewFile(uintptr(fd), "server")
	t.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	go func() {
		buf := make([]byte, 64)
		for {
			err := raw.Read(func(fd uintptr) bool {
				for {
					n, from, err := unix.Recvfrom(int(fd), buf, 0)
					if errors.Is(err, unix.EAGAIN) {
						return false
					} else if err == nil {
						_ = unix.Sendto(int(fd), buf[:n], 0, from)
					}
				}
			})
			if err != nil {
				return
			}
		}
	}()
}

func publishLoad(t *testing.T, w *lbmap.Writer) {
	t.Helper()
	for i := range loadServices {
		for _, v6 := range []bool{false, true} {
			for _, p := range []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDP, lbmap.ProtocolUDPLite} {
				_, err := w.Upsert(t.Context(), lbmap.Service{
					Frontend: lbmap.Frontend{AddrPort: loadService(v6, i), Protocol: p},
					Backends: []lbmap.Backend{{AddrPort: loadBackend(v6, backendOf(i)), Protocol: p}},
				})
				require.NoError(t, err)
			}
		}
	}
}

// changeServices adds, changes and deletes services of others, and changes those of the applications in ways that they
// must not notice: a second backend comes and goes.
func changeServices(ctx context.Context, w *lbmap.Writer, changes *atomic.Int64) error {
	for i := 0; ctx.Err() == nil; i++ {
		other := lbmap.Frontend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 98, byte(i >> 4), byte(i)}), 80), Protocol: lbmap.ProtocolTCP}
		backends := func(n int) (all []lbmap.Backend) {
			for b := range n {
				all = append(all, lbmap.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), byte(b)}), 80), Protocol: lbmap.ProtocolTCP})
			}
			return all
		}
		for _, n := range []int{3, 1, 2} {
			if _, err := w.Upsert(ctx, lbmap.Service{Frontend: other, Backends: backends(n)}); err != nil && ctx.Err() == nil {
				return fmt.Errorf("changing a service: %w", err)
			}
		}
		own := 1 + i%(loadServices-1)
		service := lbmap.Service{
			Frontend: lbmap.Frontend{AddrPort: loadService(false, own), Protocol: lbmap.ProtocolUDP},
			Backends: []lbmap.Backend{{AddrPort: loadBackend(false, backendOf(own)), Protocol: lbmap.ProtocolUDP}},
		}
		for _, flags := range []lbmap.ServiceFlags{lbmap.FlagAffinity, 0} {
			service.Flags = flags
			if flags != 0 {
				service.AffinityTimeout = time.Minute
			} else {
				service.AffinityTimeout = 0
			}
			if _, err := w.Upsert(ctx, service); err != nil && ctx.Err() == nil {
				return fmt.Errorf("changing an application's service: %w", err)
			}
		}
		if _, err := w.Delete(ctx, other); err != nil && ctx.Err() == nil {
			return fmt.Errorf("deleting a service: %w", err)
		}
		changes.Add(6)
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// killLingerers starts processes with sockets and kills them.
func killLingerers(ctx context.Context, killed *atomic.Int64) error {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), workerEnv+"="+lingerers)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = stdin.Close()
		if ctx.Err() == nil && line != "ready\n" {
			return fmt.Errorf("a process with %d sockets: %s", lingererAmount, &stderr)
		}
		killed.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return nil
}

// crew are the workers that run.
type crew struct {
	commands []*exec.Cmd
	stdins   []io.WriteCloser
	stdouts  []*bufio.Reader
	stderrs  []*bytes.Buffer
}

func startWorkers(t *testing.T, n int) *crew {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	exchange := []*os.File{os.NewFile(uintptr(pair[0]), "in"), os.NewFile(uintptr(pair[1]), "out")}
	defer exchange[0].Close()
	defer exchange[1].Close()
	c := new(crew)
	for range n {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), workerEnv+"="+churners)
		cmd.ExtraFiles = exchange
		stderr := new(bytes.Buffer)
		cmd.Stderr = stderr
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		c.commands = append(c.commands, cmd)
		c.stdins = append(c.stdins, stdin)
		c.stdouts = append(c.stdouts, bufio.NewReader(stdout))
		c.stderrs = append(c.stderrs, stderr)
	}
	return c
}

// stop ends the load, and returns what the workers have seen. Some sockets stay open.
func (c *crew) stop(t *testing.T) (all seen) {
	t.Helper()
	for _, stdin := range c.stdins {
		_, err := io.WriteString(stdin, "stop\n")
		require.NoError(t, err)
	}
	for i, stdout := range c.stdouts {
		line, err := stdout.ReadBytes('\n')
		require.NoError(t, err, "%s", c.stderrs[i])
		var one seen
		require.NoError(t, json.Unmarshal(line, &one))
		all.add(one)
	}
	return all
}

func (c *crew) end(t *testing.T) {
	t.Helper()
	for i, stdin := range c.stdins {
		require.NoError(t, stdin.Close())
		require.NoError(t, c.commands[i].Wait(), "%s", c.stderrs[i])
	}
}

// listed are the cookies of the sockets that hold tuples.
func (n *node) listed() []uint64 {
	n.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		o := n.run("list", "-o", "json")
		require.Equal(n, 0, o.code, o)
		var document struct {
			Sockets []json.RawMessage `json:"sockets"`
		}
		require.NoError(n, json.Unmarshal([]byte(o.stdout), &document), o.stdout)
		var cookies []uint64
		var orphans []string
		for _, text := range document.Sockets {
			var s struct {
				Cookie    json.RawMessage `json:"cookie"`
				Processes []struct{}      `json:"processes"`
			}
			require.NoError(n, json.Unmarshal(text, &s))
			cookie, err := strconv.ParseUint(strings.Trim(string(s.Cookie), `"`), 0, 64)
			require.NoError(n, err)
			cookies = append(cookies, cookie)
			if len(s.Processes) == 0 {
				orphans = append(orphans, string(text))
			}
		}
		// The kernel frees sockets some time after they were closed.
		if len(orphans) == 0 || time.Now().After(deadline) {
			assert.Empty(n, orphans, "sockets that no process has open")
			return cookies
		}
	}
}

func (n *node) counters() loader.Counters {
	n.Helper()
	dp, err := loader.Open(loader.Options{Cgroup: sandbox.Cgroup(), MapsDir: mapsDir, PinsDir: pinsDir})
	require.NoError(n, err)
	defer dp.Close()
	c, err := dp.Counters()
	require.NoError(n, err)
	return c
}

// kernelWarnings is the number of lines in the kernel's log.
func kernelWarnings(t *testing.T) []string {
	t.Helper()
	log := make([]byte, 1<<20)
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(log[:size])), "\n")
}

// newWarnings are the lines that tell of something that must not happen.
func newWarnings(t *testing.T, before []string) (bad []string) {
	t.Helper()
	old := make(map[string]bool)
	for _, line := range before {
		old[line] = true
	}
	for _, line := range kernelWarnings(t) {
		for _, word := range []string{"WARNING", "BUG", "Oops", "general protection", "refcount", "use-after-free", "stall", "hung task", "optlen"} {
			if !old[line] && strings.Contains(line, word) {
				bad = append(bad, line)
			}
		}
	}
	return bad
}

// resources is what this test takes of the machine, and has to give back.
type resources struct {
	files, pins int
	memory      int // bytes that the kernel has for the sandbox: slab, maps, programs
}

func resourcesOf(t *testing.T) resources {
	t.Helper()
	memory, err := sandbox.KernelMemory()
	require.NoError(t, err)
	r := resources{memory: memory}
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	r.files = len(files)
	require.NoError(t, filepath.WalkDir(bpffs, func(string, os.DirEntry, error) error { r.pins++; return nil }))
	return r
}

// openFiles says how many descriptors of this process are open to what.
func openFiles() map[string]int {
	open := make(map[string]int)
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, file := range files {
		to, _ := os.Readlink(file)
		kind, _, _ := strings.Cut(to, ":[")
		open[kind]++
	}
	return open
}

// memoryTolerance is what memory may differ by: per-CPU caches, pages of slab that are not full, and what the kernel allocates
// once. 0.2 to 3 MB were seen, and once 11 MB, as much as in another run had come before the load. The least that a socket can
// leave is a storage in a bucket of 128 bytes: 25 MB of 200,000 sockets.
const memoryTolerance = 16 << 20

func (r resources) assertBack(t *testing.T) {
	t.Helper()
	var now resources
	for range 1800 { // the kernel frees much of it later
		runtime.GC() // closes the pipes by which Go copies from one connection to another
		now = resourcesOf(t)
		if now.files <= r.files && now.pins <= r.pins && now.memory <= r.memory+memoryTolerance {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !assert.LessOrEqual(t, now.files, r.files, "descriptors") {
		t.Log(openFiles())
	}
	assert.LessOrEqual(t, now.pins, r.pins, "pins")
	assert.LessOrEqual(t, now.memory, r.memory+memoryTolerance, "bytes of the kernel's memory")
	t.Logf("before and after: %+v, %+v", r, now)
}
