// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

var hostileSockets = flag.Int("faults.sockets", 50, "how many sockets the hostile process may open")

const (
	hostile      = "hostile"
	hostilePeers = 2300 // more than a socket can have
	hostileEnv   = "REVSK_FAULTS_HOSTILE"
	ownSends     = 3000

	// What memory may differ by that the kernel charges ahead, by 64 pages for each processor.
	ownerTolerance = 1 << 20
)

func hostileService(n int) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(netip.MustParseAddr("10.97.0.0"), n), 53)
}

// An unprivileged process has as many sockets as it can have, each with as many peers and connections as it can have, and goes on.
// Whoever works beside it notices nothing.
func TestHostileProcess(t *testing.T) {
	n := newNode(t)
	n.clean()
	owner := newMemoryGroup(t, "owner")
	out, err := owner.command(os.Getenv(binaryEnv), commandLine([]string{"load"})...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	setUpLoadNetwork(t)
	startLoadServers(t)
	services, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer services.Close()
	publishLoad(t, services)
	for i := range hostilePeers {
		_, err := services.Upsert(t.Context(), lbmap.Service{
			Frontend: lbmap.Frontend{AddrPort: hostileService(i), Protocol: lbmap.ProtocolUDP},
			Backends: []lbmap.Backend{{
				AddrPort: netip.AddrPortFrom(sandbox.Numbered(netip.MustParseAddr("127.3.0.0"), i), 9), Protocol: lbmap.ProtocolUDP,
			}},
		})
		require.NoError(t, err)
	}
	for _, mode := range []string{"storage", "dual"} {
		t.Run(mode, func(t *testing.T) {
			n.must("mode", mode)
			hostileProcess(t, mode, owner)
		})
	}
}

func hostileProcess(t *testing.T, mode string, owner *memoryGroup) {
	group := newMemoryGroup(t, hostile)
	dp, err := loader.Open(loader.Options{Cgroup: sandbox.Cgroup(), MapsDir: mapsDir, PinsDir: pinsDir})
	require.NoError(t, err)
	defer dp.Close()
	remembered := func(fd int) int {
		var peers revnat.PeersValue
		require.NoError(t, dp.Map(sock.SockMapRevskPeers).Lookup(uint32(fd), &peers))
		return len(peers.Tuples()) + int(peers.TableCount)
	}
	before, err := dp.Counters()
	require.NoError(t, err)

	working := newWorking(t)
	for i := range loadServices {
		working.ask(i)
	}
	atRest, err := sandbox.AtRest(func() (int, error) { return owner.memory(), nil })
	require.NoError(t, err)
	peers := remembered(working.fd)
	require.Greater(t, peers, revnat.Slots, "it has a table, too")

	executable, err := os.Executable() // /proc/self/exe would be the shell's
	require.NoError(t, err)
	cmd := group.command(executable)
	cmd.Env = append(os.Environ(), workerEnv+"="+hostile, hostileEnv+"="+strconv.Itoa(*hostileSockets))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	answers := bufio.NewReader(stdout)
	var taken, closed hostileReport
	taken.read(t, answers)
	assert.Zero(t, taken.Refused, "its own sends are not refused either")
	charged := owner.memory() - atRest
	for i := range ownSends {
		working.ask(i % loadServices)
	}
	now, err := dp.Counters()
	require.NoError(t, err)
	assert.Equal(t, before.RejectedNoMemory, now.RejectedNoMemory)
	assert.Equal(t, before.RejectedNoBackend, now.RejectedNoBackend)
	assert.Greater(t, now.Evicted, before.Evicted, "the hostile process has all that it can have")
	assert.Equal(t, peers, remembered(working.fd), "what the other socket remembers")

	_, err = stdin.Write([]byte("close\n"))
	require.NoError(t, err)
	closed.read(t, answers)
	assert.Less(t, closed.Longest, tooLong)
	if owner.dir != "" {
		assert.Greater(t, charged, taken.Sockets*100<<10, "bytes charged to the group of who has loaded")
		require.Eventually(t, func() bool { return owner.memory() < atRest+ownerTolerance }, 3*time.Minute, 100*time.Millisecond,
			"the memory does not come back")
	}
	require.NoError(t, stdin.Close())
	require.NoError(t, cmd.Wait())
	figure(t, "hostile "+mode, "%s sockets that send to %s services each: %.1f MB, %s KB a socket, charged to the memory cgroup of `revsk load`; "+
		"%.1f MB, for the sockets themselves, to that of the process. Closing all took %v, one at most %v. "+
		"Beside it %s answers were right, no call was refused, and nothing of the other socket was evicted.",
		thousands(taken.Sockets), thousands(hostilePeers), float64(charged)/1e6, thousands(charged/taken.Sockets/1000),
		float64(taken.Memory)/1e6, closed.All.Round(10*time.Microsecond), closed.Longest.Round(time.Microsecond), thousands(working.asked))
}

// working is a socket of a program that works.
type working struct {
	*testing.T
	*socket
	fd    int
	asked int
}

func newWorking(t *testing.T) *working {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	tv := unix.NsecToTimeval(int64(answerTimeout))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	return &working{T: t, socket: &socket{domain: unix.AF_INET}, fd: fd}
}

// ask asks a service; the answer has to be from it.
func (w *working) ask(n int) {
	w.Helper()
	w.asked++
	service, question := loadService(false, n), fmt.Sprint(w.asked)
	require.NoError(w, uninterrupted(func() error { return unix.Sendto(w.fd, []byte(question), 0, sockaddr.Of(w.domain, service)) }))
	var buf [64]byte
	var size int
	var from unix.Sockaddr
	require.NoError(w, uninterrupted(func() (err error) { size, from, err = unix.Recvfrom(w.fd, buf[:], 0); return err }))
	require.Equal(w, question, string(buf[:size]))
	require.Equal(w, service, sockaddr.AddrPort(from))
}

// memoryGroup is a memory cgroup of version 1; without a directory where there is none.
type memoryGroup struct {
	*testing.T
	dir string
}

func newMemoryGroup(t *testing.T, name string) *memoryGroup {
	t.Helper()
	const root = "/sys/fs/cgroup/memory"
	g := &memoryGroup{T: t}
	if _, err := os.Stat(filepath.Join(root, "memory.kmem.usage_in_bytes")); err != nil {
		t.Log("no memory cgroups of version 1: not measured who is charged")
		return g
	}
	g.dir = filepath.Join(root, filepath.Base(sandbox.Cgroup())+"-"+name)
	require.NoError(t, os.Mkdir(g.dir, 0o755)) // the process reads it
	t.Cleanup(func() {
		assert.Eventually(t, func() bool { return os.Remove(g.dir) == nil }, time.Minute, 20*time.Millisecond)
	})
	return g
}

// command is one whose process is in the group.
func (g *memoryGroup) command(name string, args ...string) *exec.Cmd {
	if g.dir == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("sh", append([]string{"-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, g.dir, name}, args...)...)
}

// memory is the kernel's memory, in bytes, that the group is charged for.
func (g *memoryGroup) memory() int {
	g.Helper()
	if g.dir == "" {
		return 0
	}
	n := memoryOf(g.dir)
	require.NotZero(g, n)
	return n
}

// memoryOf returns 0 where it is not counted.
func memoryOf(group string) int {
	text, _ := os.ReadFile(filepath.Join(group, "memory.kmem.usage_in_bytes"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// hostileReport is what the hostile process says of itself.
type hostileReport struct {
	Sockets, Refused int
	Memory           int           // that its memory cgroup is charged for
	All, Longest     time.Duration // of closing
}

func (r *hostileReport) read(t *testing.T, from *bufio.Reader) {
	t.Helper()
	line, err := from.ReadBytes('\n')
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(line, r), "%s", line)
}

// runHostile is the process. It says what it has taken when each socket has all that it can have, goes on until it is told to
// close, and says how long that took.
func runHostile() error {
	group, err := ownMemoryGroup()
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
		return err
	}
	limit, err := strconv.Atoi(os.Getenv(hostileEnv))
	if err != nil {
		return err
	}
	var r hostileReport
	before := memoryOf(group)
	s := &socket{domain: unix.AF_INET}
	var fds []int
	send := func(fd, n int) {
		err := uninterrupted(func() error { return unix.Sendto(fd, nil, unix.MSG_DONTWAIT, sockaddr.Of(s.domain, hostileService(n))) })
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) { // that is of an earlier send: nobody is there
			r.Refused++
		}
	}
	for range limit {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			break
		} else if err != nil {
			return err
		}
		fds = append(fds, fd)
		for n := range hostilePeers {
			send(fd, n)
		}
		for n := range 3 {
			if err := unix.Connect(fd, sockaddr.Of(s.domain, hostileService(n))); err != nil {
				return fmt.Errorf("connecting: %w", err)
			}
		}
		if err := usesOptmem(fd, sockaddr.Of(s.domain, hostileService(3))); err != nil {
			return err
		}
	}
	r.Sockets = len(fds)
	r.Memory = memoryOf(group) - before
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}

	told := make(chan struct{})
	go func() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n'); close(told) }()
	for n := 0; ; n++ {
		select {
		case <-told:
		default:
			send(fds[n%len(fds)], n%hostilePeers)
			continue
		}
		break
	}
	begin := time.Now()
	for _, fd := range fds {
		one := time.Now()
		_ = unix.Close(fd)
		r.Longest = max(r.Longest, time.Since(one))
	}
	r.All = time.Since(begin)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// ownMemoryGroup is the directory of the memory cgroup of version 1 that the process is in; "" where there is none.
func ownMemoryGroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), ":memory:"); ok {
			return filepath.Join("/sys/fs/cgroup/memory", path), nil
		}
	}
	return "", nil
}

// usesOptmem attaches a filter, and sends with 320 bytes of control messages: both take of the memory of which a table leaves some.
func usesOptmem(fd int, to unix.Sockaddr) error {
	filter := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &filter}); err != nil {
		return fmt.Errorf("attaching a filter to a socket with a full table: %w", err)
	}
	var control []byte
	for len(control) < 320 {
		one := make([]byte, unix.CmsgSpace(4))
		header := (*unix.Cmsghdr)(unsafe.Pointer(&one[0]))
		header.Level, header.Type = unix.IPPROTO_IP, unix.IP_TTL
		header.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(one[unix.CmsgLen(0):], 64)
		control = append(control, one...)
	}
	err := error(unix.ECONNREFUSED)
	for errors.Is(err, unix.ECONNREFUSED) { // of an earlier send
		err = uninterrupted(func() error { return unix.Sendmsg(fd, nil, control, to, 0) })
	}
	if err != nil {
		return fmt.Errorf("sending control messages on a socket with a full table: %w", err)
	}
	return nil
}
