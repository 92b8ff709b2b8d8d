// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/api"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// node is a machine whose sockets have their entries in the hash, and leaked ones beside them.
type node struct {
	place
	udp  socket // connected to the service 192.0.2.1:53
	sent socket // has sent to five services
	tcp  net.Conn
}

// Services of a node, and how many leaked entries they have.
var leaks = map[string]int{"192.0.2.1:53": 30, "192.0.2.9:53": 12}

const liveEntries = 1 + 5 + 1

// newNode returns a node in mode legacy. Its backends are addresses of this process alone: an audit sees
// the sockets of all network namespaces of the machine.
func newNode(t *testing.T) node {
	n := node{place: newPlace(t)}
	n.load("--mode", "legacy").ok()
	n.run("service", "add", "192.0.2.1:53/udp", "--backend", backend(1, 5353)).ok()
	n.udp = newSocket(t)
	require.NoError(t, unix.Connect(n.udp.fd, sockaddrOf("192.0.2.1:53")))
	n.sent = newSocket(t)
	n.sent.sendToServices(t, n.place, 5)
	l, err := net.Listen("tcp", backend(2, 0))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	n.run("service", "add", "192.0.2.1:80/tcp", "--backend", l.Addr().String()).ok()
	n.tcp, err = net.Dial("tcp", "192.0.2.1:80")
	require.NoError(t, err)
	t.Cleanup(func() { n.tcp.Close() })
	cookie := uint64(1) << 60 // of no socket
	for service, number := range leaks {
		for range number {
			cookie++
			n.putEntry(cookie, "192.0.2.200:53", service)
		}
	}
	return n
}

// backend is a loopback address of this process.
func backend(i, port int) string {
	return fmt.Sprintf("127.%d.%d.%d:%d", 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff, i, port)
}

// hash opens the legacy map of IPv4.
func (n node) hash() *ebpf.Map {
	n.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.maps(), lbmap.ReverseSK4Map), nil)
	require.NoError(n.t, err)
	n.t.Cleanup(func() { m.Close() })
	return m
}

func (n node) putEntry(cookie uint64, backend, service string) {
	n.t.Helper()
	require.NoError(n.t, n.hash().Put(
		lbmap.ReverseSKKey{Cookie: cookie, Backend: netip.MustParseAddrPort(backend)},
		lbmap.ReverseSKValue{Service: netip.MustParseAddrPort(service), RevNat: 7}))
}

// entries counts those of the hash.
func (n node) entries() int {
	n.t.Helper()
	var key, value []byte
	number := 0
	for it := n.hash().Iterate(); it.Next(&key, &value); {
		number++
	}
	return number
}

// requireServices fails if a socket does not show its service.
func (n node) requireServices() {
	n.t.Helper()
	require.Equal(n.t, "192.0.2.1:53", n.udp.peer(n.t))
	require.Equal(n.t, "192.0.2.1:80", peerOf(n.t, n.tcp))
}

// peerOf asks the kernel; net.Conn remembers what it was told first.
func peerOf(t *testing.T, c net.Conn) string {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var peer string
	require.NoError(t, raw.Control(func(fd uintptr) { peer = socket{fd: int(fd)}.peer(t) }))
	return peer
}

// stableReport replaces what differs from one run to the next.
func stableReport(p place, text string) string {
	return replace(stable(p, text),
		fmt.Sprintf(`127\.%d\.%d\.`, 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff), "127.A.B.",
		`127\.A\.B\.2:\d+`, "127.A.B.2:PORT",
		`(?m)^STEP +SECONDS$`, "STEP  SECONDS",
		`(?m) +\d+\.\d{3}$`, "  SECONDS",
		`"seconds": [0-9.e-]+`, `"seconds": 0`,
		`"cookie": "\d+"`, `"cookie": "1"`,
		`(?m)^\d+ +127\.A\.B\.1:5353  `, "COOKIE  127.A.B.1:5353  ",
		`(?m)^(UNRESOLVED: COOKIE  BACKEND) +`, "$1  ",
	)
}

func TestAuditNeedsNoHooksAndChangesNothing(t *testing.T) {
	n := newNode(t)
	n.run("unload", "--purge", "--quiet").ok()
	before := state(t, n.place)
	golden(t, "migrate-plan.txt", stableReport(n.place, n.run("migrate", "--dry-run").ok().stdout))
	golden(t, "migrate-plan.json", stableReport(n.place, n.run("migrate", "--dry-run", "-o", "json").ok().stdout))
	require.NoDirExists(t, n.pins())
	require.Equal(t, before, state(t, n.place))

	var byDescriptor, byIterator planDocument
	n.run("migrate", "--dry-run", "-o", "json", "--engine", "iter").ok().json(&byIterator)
	n.run("migrate", "--dry-run", "-o", "json", "--engine", "pidfd").ok().json(&byDescriptor)
	require.Equal(t, byIterator.Counts, byDescriptor.Counts)
	require.Equal(t, before, state(t, n.place))
}

func TestAuditSaysWhatIsLeaked(t *testing.T) {
	n := newNode(t)
	var plan planDocument
	n.run("migrate", "--dry-run", "-o", "json").ok().json(&plan)
	require.Equal(t, loader.ModeLegacy, *plan.Mode)
	require.Equal(t, liveEntries+42, plan.Counts.Entries)
	require.Equal(t, 42, plan.Counts.Leaked)
	require.Equal(t, 85.71, plan.LeakedPercent)
	require.Equal(t, []api.ServiceCount{
		{Service: "192.0.2.1:53", RevNat: 7, Entries: 30}, {Service: "192.0.2.9:53", RevNat: 7, Entries: 12},
	}, plan.Leaks)
	require.Equal(t, 0, plan.WithoutEntrySockets)
}

func TestAuditFindsConnectedSocketsWithoutEntry(t *testing.T) {
	n := newNode(t)
	cookie, err := unix.GetsockoptUint64(n.udp.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	require.NoError(t, err)
	require.NoError(t, n.hash().Delete(lbmap.ReverseSKKey{Cookie: cookie, Backend: netip.MustParseAddrPort(backend(1, 5353))}))
	var plan planDocument
	n.run("migrate", "--dry-run", "-o", "json").ok().json(&plan)
	require.Equal(t, []api.BackendCount{{Backend: backend(1, 5353), Protocol: lbmap.ProtocolUDP, Sockets: 1}}, plan.WithoutEntry)
	require.Equal(t, 1, plan.WithoutEntrySockets)
	require.Contains(t, n.run("migrate", "--dry-run").ok().stdout, "1 socket has no entry: connected to the backend directly")
}

func TestAuditOfManyServicesShowsTheTen(t *testing.T) {
	n := newNode(t)
	for i := range 20 {
		n.putEntry(1<<61+uint64(i), "192.0.2.200:53", fmt.Sprintf("198.51.100.%d:53", i))
	}
	var plan planDocument
	n.run("migrate", "--dry-run", "-o", "json").ok().json(&plan)
	require.Len(t, plan.Leaks, 22)
	text := n.run("migrate", "--dry-run").ok().stdout
	require.Contains(t, text, "and 12 more: -o json has all\n")
	require.Equal(t, 8, strings.Count(text, "198.51.100."))
}

func TestMigrateMovesEverythingAndSaysSo(t *testing.T) {
	n := newNode(t)
	golden(t, "migrate.txt", stableReport(n.place, n.run("migrate").ok().stdout))
	require.Equal(t, "storage\n", n.run("mode").ok().stdout)
	require.Equal(t, 0, n.entries())
	n.requireServices()
	require.Contains(t, n.run("migrate", "--dry-run").ok().stdout, "The hash is empty, and the services are on the sockets. Nothing to do.\n")

	golden(t, "rollback.txt", stableReport(n.place, n.run("rollback").ok().stdout))
	require.Equal(t, "legacy\n", n.run("mode").ok().stdout)
	require.Equal(t, liveEntries, n.entries())
	n.requireServices()
	require.Contains(t, n.run("rollback").ok().stdout, "The mode is legacy already: nothing to do.\n")
}

func TestMigrateAndRollbackAsJSON(t *testing.T) {
	n := newNode(t)
	r := n.run("migrate", "-o", "json", "--engine", "pidfd").ok()
	golden(t, "migrate.json", stableReport(n.place, r.stdout))
	var report reportDocument
	r.json(&report)
	c := report.Counts
	require.Equal(t, c.Entries, c.MovedConn+c.MovedPeers+c.Present+c.Stale+c.Leaked+c.Ended+c.Unknown+c.NoRoom)
	require.Positive(t, report.Seconds)
	r = n.run("rollback", "-o", "json").ok()
	golden(t, "rollback.json", stableReport(n.place, r.stdout))
	require.Empty(t, n.run("migrate", "--quiet").ok().stdout)
	require.Empty(t, n.run("rollback", "--quiet").ok().stdout)
	n.requireServices()
}

func TestMigrateKeepsStaleEntriesIfAskedTo(t *testing.T) {
	n := newNode(t)
	// Of a service that was only sent to: the entry of a connection is moved, whatever becomes of the service.
	n.run("service", "delete", "192.0.2.10:53/udp").ok()
	var plan planDocument
	n.run("migrate", "--dry-run", "-o", "json").ok().json(&plan)
	require.Equal(t, 1, plan.Counts.Stale)

	r := n.run("migrate", "--keep-stale", "--unpin-source")
	require.Regexp(t, "is not empty, and stays pinned", r.fails(exitPartly))
	require.Equal(t, 1, n.entries())
	require.FileExists(t, filepath.Join(n.maps(), lbmap.ReverseSK4Map))
	require.Contains(t, n.run("migrate", "--keep-stale").ok().stdout, "mode")

	n.run("migrate", "--unpin-source").ok()
	require.NoFileExists(t, filepath.Join(n.maps(), lbmap.ReverseSK4Map))
	require.NoFileExists(t, filepath.Join(n.maps(), lbmap.ReverseSK6Map))
}

func TestRollbackThatDoesNotFitChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.run("load", "--legacy-entries", "4", "--quiet").ok()
	s := newSocket(t)
	s.sendToServices(t, p, 6)
	before := state(t, p)
	for _, line := range []string{"rollback", "rollback --dry-run"} {
		r := p.run(strings.Fields(line)...)
		require.Equal(t, "revsk: cilium_lb4_reverse_sk has room for 4 entries, sockets hold 6: does not fit into the legacy map: "+
			"wait until there are fewer sockets, or use --force and let some lose their service", r.fails(exitFailed))
		require.Regexp(t, `(?m)^cilium_lb4_reverse_sk +6 +4 +150\.0%$`, r.stdout)
		require.Contains(t, r.stdout, "Nothing was changed, the mode is storage.\n")
		require.Equal(t, before, state(t, p))
	}
	var report rollbackDocument
	p.run("rollback", "--force", "-o", "json").ok().json(&report)
	require.True(t, report.Complete)
	require.GreaterOrEqual(t, report.Missing, 2)
	require.Len(t, report.Unresolved, report.Missing)
	require.Equal(t, "legacy\n", p.run("mode").ok().stdout)
}

func TestRollbackDryRunChangesNothing(t *testing.T) {
	p := newPlace(t)
	p.load().ok()
	connectUDP(t, p)
	before := state(t, p)
	require.Contains(t, p.run("rollback", "--dry-run").ok().stdout, "Everything fits. Next: revsk rollback, which writes these 1 tuple ")
	require.Equal(t, before, state(t, p))
}

// What is in flight in a message is in no file table, and with the descriptors' engine out of reach.
func TestMigrateThatLeavesSomethingIsPartlyDone(t *testing.T) {
	n := newNode(t)
	queue, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(queue[1])
	defer unix.Close(queue[0])
	require.NoError(t, unix.Sendmsg(queue[0], []byte("x"), unix.UnixRights(n.udp.fd), nil, 0))
	require.NoError(t, unix.Close(n.udp.fd))
	n.udp.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // for the end of the test to close
	require.NoError(t, err)

	r := n.run("migrate", "--engine", "pidfd")
	require.Equal(t, "revsk: 1 entries: not everything could be moved: "+
		"nothing is lost; see what is listed, and run the same command again later", r.fails(exitPartly))
	golden(t, "migrate-unresolved.txt", stableReport(n.place, r.stdout))
	require.Equal(t, "dual\n", n.run("mode").ok().stdout)

	r = n.run("migrate", "--engine", "pidfd", "-o", "json")
	r.fails(exitPartly)
	var report reportDocument
	r.json(&report)
	require.False(t, report.Complete)
	require.Len(t, report.Unresolved, 1)
	require.Equal(t, loader.ModeDual, report.Mode)

	n.run("migrate", "--engine", "iter").ok()
	require.Equal(t, 0, n.entries())
}

// interruptedCommand runs a command line that is interrupted before it begins.
func interruptedCommand(p place, args ...string) result {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, &env{Stdout: &stdout, Stderr: &stderr}, p.args(args...))
	return newResult(p.t, code, stdout.String(), stderr.String())
}

func TestInterruptionSaysHowToContinue(t *testing.T) {
	n := newNode(t)
	before := state(t, n.place)
	require.Equal(t, "revsk: interrupted: nothing was changed", interruptedCommand(n.place, "migrate", "--dry-run").fails(exitFailed))
	require.Equal(t, before, state(t, n.place))
	r := interruptedCommand(n.place, "migrate")
	require.Equal(t, "revsk: interrupted in mode legacy: nothing is lost, run the same command again to continue", r.fails(exitFailed))
	require.Contains(t, r.stdout, "Not finished, in mode legacy: no socket has lost its service. Next: revsk migrate, again.\n")
	require.Equal(t, liveEntries+42, n.entries())
	n.run("migrate").ok()
	require.Equal(t, 0, n.entries())

	r = interruptedCommand(n.place, "rollback", "-o", "json")
	require.Regexp(t, "^revsk: interrupted in mode (storage|dual): nothing is lost, run the same command again to continue$", r.fails(exitFailed))
	n.run("rollback").ok()
	require.Equal(t, liveEntries, n.entries())
	n.requireServices()
}

func TestMigrateWithoutALegacyMapIsSaid(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
		require.NoError(t, os.Remove(filepath.Join(n.maps(), name)))
		before := state(t, n.place)
		for _, line := range []string{"migrate", "rollback", "rollback --dry-run"} {
			require.Equal(t, "revsk: "+n.maps()+": legacy map is missing: "+
				"name the directory of the legacy maps with --maps; revsk load creates those that are missing",
				n.run(strings.Fields(line)...).fails(exitFailed), line)
		}
		require.Equal(t, before, state(t, n.place))
	}
	require.Regexp(t, "legacy map is missing", n.run("migrate", "--dry-run").fails(exitFailed))
	for _, name := range []string{lbmap.Services4Map, lbmap.Services6Map} {
		require.NoError(t, os.Remove(filepath.Join(n.maps(), name)))
	}
	before := state(t, n.place)
	for _, line := range []string{"migrate", "migrate --dry-run"} {
		require.Regexp(t, "map is missing: run revsk load, which creates the maps, or name their directory with --maps$",
			n.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	require.Equal(t, before, state(t, n.place))
}

func TestMigrateRefusesALegacyMapOfAnotherLayout(t *testing.T) {
	for name, spec := range map[string]*ebpf.MapSpec{
		"type":  {Type: ebpf.Hash, KeySize: lbmap.ReverseSKKey4Size, ValueSize: lbmap.ReverseSKValue4Size, MaxEntries: 9},
		"key":   {Type: ebpf.LRUHash, KeySize: 12, ValueSize: lbmap.ReverseSKValue4Size, MaxEntries: 9},
		"value": {Type: ebpf.LRUHash, KeySize: lbmap.ReverseSKKey4Size, ValueSize: 20, MaxEntries: 9},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			require.NoError(t, os.Remove(filepath.Join(n.maps(), lbmap.ReverseSK4Map)))
			pin(t, n.place, lbmap.ReverseSK4Map, spec)
			before := state(t, n.place)
			for _, line := range []string{"migrate", "migrate --dry-run", "rollback"} {
				message := n.run(strings.Fields(line)...).fails(exitFailed)
				require.Regexp(t, lbmap.ReverseSK4Map+": (pinned|legacy) map has another layout: .*: (name|use) ", message, line)
			}
			require.Equal(t, before, state(t, n.place))
		})
	}
}

func TestMigrateRefusesHalfOfTheHooks(t *testing.T) {
	n := newNode(t)
	for _, hook := range []string{"revsk_recvmsg4", "revsk_release"} {
		path := filepath.Join(n.pins(), "links", hook)
		l, err := link.LoadPinnedLink(path, nil)
		require.NoError(t, err)
		require.NoError(t, l.Detach()) // the last pin that goes detaches some time later
		require.NoError(t, l.Close())
		require.NoError(t, os.Remove(path))
	}
	before := state(t, n.place)
	for _, line := range []string{"migrate", "rollback", "rollback --dry-run"} {
		require.Equal(t, "revsk: hooks are missing: revsk_recvmsg4, revsk_release: run revsk load, which attaches them",
			n.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	require.Contains(t, n.run("migrate", "--dry-run").ok().stdout, "Next: revsk load, which attaches the hooks that are missing, then revsk migrate")
	require.Equal(t, before, state(t, n.place))

	// Half of the maps.
	require.NoError(t, os.Remove(filepath.Join(n.pins(), "revsk_tab_512")))
	before = state(t, n.place)
	for _, line := range []string{"migrate", "rollback"} {
		require.Regexp(t, ": not loaded: a load or an unload has ended half way: run revsk load first", n.run(strings.Fields(line)...).fails(exitFailed), line)
	}
	require.Equal(t, before, state(t, n.place))
}

// TestSmallestCapabilities has the rest.
func TestMigrateWithoutACapabilityChangesNothing(t *testing.T) {
	n := newNode(t)
	before := state(t, n.place)
	for _, caps := range [][]privilege{{capAdmin, capResource}, {capPtrace, capResource}} {
		for _, line := range []string{"migrate --engine iter", "migrate --engine pidfd", "migrate --dry-run", "migrate --dry-run --engine pidfd"} {
			r := runWith(t, caps, freshProcess, n.args(strings.Fields(line)...)...)
			require.Regexp(t, ": run as root, with CAP_SYS_ADMIN, CAP_SYS_PTRACE, ", r.fails(exitFailed), line)
			require.Equal(t, before, state(t, n.place), line)
		}
	}
	n.requireServices()
}

func TestMigrateInAPIDNamespaceWarns(t *testing.T) {
	n := newNode(t)
	r := runAs(t, "in a pid namespace", &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}, n.args("migrate", "--dry-run")...)
	require.Equal(t, 0, r.code)
	require.Contains(t, r.stderr, "processes outside this pid namespace are not seen")
}
