// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

const bpffs = "/sys/fs/bpf/node"

var (
	pinsDir  = filepath.Join(bpffs, "revsk")
	mapsDir  = filepath.Join(bpffs, "tc", "globals")
	linksDir = filepath.Join(bpffs, "cilium", "socketlb", "links", "cgroup")
)

// Services, each with one backend, which is a server of this process.
var (
	service4  = netip.MustParseAddrPort("10.96.0.1:53")
	other4    = netip.MustParseAddrPort("10.96.0.2:53")
	service6  = netip.MustParseAddrPort("[fd00:96::1]:53")
	backend4  netip.AddrPort
	backend6  netip.AddrPort
	listener4 net.Listener
	listener6 net.Listener
)

// startServers starts the backends: they answer a datagram with itself, and accept streams.
func startServers() error {
	for _, b := range []struct {
		addr     string
		at       *netip.AddrPort
		listener *net.Listener
	}{{"127.0.0.1", &backend4, &listener4}, {"::1", &backend6, &listener6}} {
		conn, listener, err := sandbox.ListenBoth(b.addr)
		if err != nil {
			return err
		}
		*b.at, *b.listener = conn.LocalAddr().(*net.UDPAddr).AddrPort(), listener
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err == nil {
					_, _ = conn.WriteTo(buf[:n], from)
				} else if errors.Is(err, net.ErrClosed) {
					return
				}
			}
		}()
	}
	return nil
}

// node is a machine on which revsk works: its agent, and the sockets of its applications.
type node struct {
	*testing.T
	agent   *reference.Agent
	sockets []*socket
	faults  int // how many were made
}

func newNode(t *testing.T) *node {
	n := &node{T: t}
	t.Cleanup(func() {
		n.clean()
		if n.agent != nil {
			require.NoError(t, n.agent.Close())
		}
	})
	return n
}

// run runs a command of revsk, undisturbed.
func (n *node) run(args ...string) outcome {
	n.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command(os.Getenv(binaryEnv), commandLine(args)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(n, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func commandLine(args []string) []string {
	return append([]string{"--cgroup", sandbox.Cgroup(), "--bpffs", bpffs}, args...)
}

// must runs a command that is to succeed.
func (n *node) must(args ...string) {
	n.Helper()
	o := n.run(args...)
	require.Equal(n, 0, o.code, "%v: %v", args, o)
}

// clean makes the node one that has never seen revsk or an agent, but for the agent's programs and maps, where it has
// loaded them.
func (n *node) clean() {
	n.Helper()
	n.closeSockets()
	if _, err := os.Stat(pinsDir); err == nil {
		if o := n.run("unload", "--force", "--purge"); o.code != 0 {
			n.Fatalf("cleaning up: %v", o)
		}
	}
	if n.agent != nil {
		require.NoError(n, n.agent.Unlink())
	}
	entries, err := os.ReadDir(bpffs)
	require.NoError(n, err)
	for _, e := range entries {
		if n.agent == nil || e.Name() != "tc" {
			require.NoError(n, os.RemoveAll(filepath.Join(bpffs, e.Name())))
		}
	}
	if n.agent != nil {
		n.emptyHash()
	}
	// The kernel detaches a link that is pinned no longer a moment later.
	require.Eventually(n, func() bool {
		for _, programs := range attachedPrograms(n.T) {
			if len(programs) > 0 {
				return false
			}
		}
		return true
	}, time.Minute, time.Millisecond, "a hook outlived its pin")
}

// serve makes the services.
func (n *node) serve() {
	n.Helper()
	n.must("service", "add", service4.String()+"/any", "--backend", backend4.String())
	n.must("service", "add", other4.String()+"/udp", "--backend", backend4.String())
	n.must("service", "add", service6.String()+"/any", "--backend", backend6.String())
}

// startAgent lets the other agent attach its programs, which it loads if it has not yet.
func (n *node) startAgent() {
	n.Helper()
	if n.agent == nil {
		var err error
		n.agent, err = reference.Hash(mapsDir)
		require.NoError(n, err)
		n.serve()
	}
	require.NoError(n, n.agent.Link(sandbox.Cgroup(), linksDir))
}

func (n *node) emptyHash() {
	n.Helper()
	for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(mapsDir, name), nil)
		require.NoError(n, err)
		var keys [][]byte
		var key, value []byte
		for it := m.Iterate(); it.Next(&key, &value); {
			keys = append(keys, slices.Clone(key))
		}
		for _, key := range keys {
			require.NoError(n, m.Delete(key))
		}
		require.NoError(n, m.Close())
	}
}

// socket is a socket of an application, and the service that it uses.
type socket struct {
	name    string
	fd      int
	domain  int
	connect bool
	service []netip.AddrPort // the last is what it is connected to
}

// openSockets opens sockets of all kinds, which use their services.
func (n *node) openSockets() {
	n.Helper()
	for _, s := range []*socket{
		{name: "UDP", domain: unix.AF_INET, connect: true, service: []netip.AddrPort{service4}},
		{name: "UDP6", domain: unix.AF_INET6, connect: true, service: []netip.AddrPort{service6}},
		{name: "UDP v4-mapped", domain: unix.AF_INET6, connect: true, service: []netip.AddrPort{service4}},
		{name: "UDP reconnected", domain: unix.AF_INET, connect: true, service: []netip.AddrPort{other4, service4}},
		{name: "UDP sent", domain: unix.AF_INET, service: []netip.AddrPort{service4}},
		{name: "UDP6 sent", domain: unix.AF_INET6, service: []netip.AddrPort{service6}},
		{name: "TCP", domain: unix.AF_INET, connect: true, service: []netip.AddrPort{service4}},
		{name: "TCP6", domain: unix.AF_INET6, connect: true, service: []netip.AddrPort{service6}},
	} {
		kind := unix.SOCK_DGRAM
		if strings.HasPrefix(s.name, "TCP") {
			kind = unix.SOCK_STREAM
		}
		var err error
		s.fd, err = unix.Socket(s.domain, kind|unix.SOCK_CLOEXEC, 0)
		require.NoError(n, err)
		tv := unix.NsecToTimeval(int64(answerTimeout))
		require.NoError(n, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
		n.sockets = append(n.sockets, s)
		for _, to := range s.service {
			if s.connect {
				require.NoError(n, unix.Connect(s.fd, sockaddr.Of(s.domain, to)), s.name)
			} else {
				require.NoError(n, unix.Sendto(s.fd, []byte("first"), 0, sockaddr.Of(s.domain, to)), s.name)
				_, err := s.receive()
				require.NoError(n, err)
			}
		}
	}
}

func (n *node) closeSockets() {
	for _, s := range n.sockets {
		_ = unix.Close(s.fd)
	}
	n.sockets = nil
}

func (s *socket) receive() (from netip.AddrPort, err error) {
	var buf [64]byte
	for {
		_, sa, err := unix.Recvfrom(s.fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return sockaddr.AddrPort(sa), err
	}
}

// shows is what the application sees: of a socket that is connected its peer, of others who answers.
func (s *socket) shows() string {
	if !s.connect {
		// To the backend that was sent to, without a new send to the service: an answer that comes late.
		sa, err := unix.Getsockname(s.fd)
		if err != nil {
			return err.Error()
		}
		if err := sendFromBackend(s.domain, sockaddr.AddrPort(sa).Port()); err != nil {
			return err.Error()
		}
		from, err := s.receive()
		if err != nil {
			return err.Error()
		}
		return from.String()
	}
	sa, err := unix.Getpeername(s.fd)
	if err != nil {
		return err.Error()
	}
	return sockaddr.AddrPort(sa).String()
}

// sendFromBackend sends a datagram from a backend to a port of this host.
func sendFromBackend(domain int, port uint16) error {
	backend := backend4
	if domain == unix.AF_INET6 {
		backend = backend6
	}
	// The server answers whoever asks: a raw socket would do, but it can be asked with a source of our choice.
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	payload := "late"
	packet := []byte{
		byte(backend.Port() >> 8), byte(backend.Port()), byte(port >> 8), byte(port),
		0, byte(8 + len(payload)), 0, 0,
	}
	packet = append(packet, payload...)
	to := sockaddr.Of(domain, netip.AddrPortFrom(backend.Addr(), 0))
	if domain == unix.AF_INET6 {
		// IPv6 has no UDP without a checksum: the kernel writes it.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 6); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, packet, 0, to)
}

// state is what a command can change: pins and what they hold, attached programs, and what applications see. Ids of
// objects are replaced by their place in the state before, or by "new".
type state map[string]string

// ids are the objects that there are before a command, by "kind id".
type ids map[string]string

// look reads the state, with ids as in known; where that is nil, it is made.
func (n *node) look(known ids) (state, ids) {
	n.Helper()
	s := make(state)
	first := known == nil
	if first {
		known = make(ids)
	}
	name := func(place, kind string, id uint32) string {
		key := fmt.Sprintf("%s %d", kind, id)
		if first && known[key] == "" {
			known[key] = place
		}
		if at := known[key]; at != "" {
			return kind + " of " + at
		}
		return "new " + kind
	}
	err := filepath.WalkDir(bpffs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			s[path] = "directory"
			return err
		}
		s[path] = n.pinned(path, name)
		return nil
	})
	require.NoError(n, err)
	for hook, programs := range attachedPrograms(n.T) {
		var all []string
		for i, id := range programs {
			all = append(all, name(fmt.Sprintf("%s %d", hook, i), "program", id))
		}
		s["hook "+hook] = strings.Join(all, ", ")
	}
	maps.Copy(s, n.answers())
	return s, known
}

// answers is what applications see.
func (n *node) answers() state {
	s := make(state)
	for _, x := range n.sockets {
		s["socket "+x.name] = x.shows()
	}
	return s
}

func (n *node) pinned(path string, name func(place, kind string, id uint32) string) string {
	n.Helper()
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		info, err := l.Info()
		require.NoError(n, err)
		text := name(path, "link", uint32(info.ID))
		if !strings.Contains(text, linksDir) {
			text = "link" // one of our own is as good as another
		}
		return text + " to " + name(path+" program", "program", uint32(info.Program))
	}
	if prog, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer prog.Close()
		info, err := prog.Info()
		require.NoError(n, err)
		id, _ := info.ID()
		return name(path, "program", uint32(id))
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	require.NoError(n, err)
	defer m.Close()
	info, err := m.Info()
	require.NoError(n, err)
	id, _ := info.ID()
	text := name(path, "map", uint32(id))
	if m.Type() != ebpf.Hash && m.Type() != ebpf.LRUHash && m.Type() != ebpf.Array {
		return text
	}
	base := filepath.Base(path)
	var entries []string
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		k, v := fmt.Sprintf("%x", key), value
		switch base {
		case "revsk_config":
			v = value[:4] // the mode; not the time of a mark
		case "cilium_lb4_reverse_sk", "cilium_lb6_reverse_sk":
			k, v = fmt.Sprintf("%s %x", n.ownerOf(key), key[8:]), nil
		}
		entries = append(entries, fmt.Sprintf("%s=%x", k, v))
	}
	require.NoError(n, it.Err())
	slices.Sort(entries)
	return text + ": " + strings.Join(entries, " ")
}

const closedSocket = "a closed socket"

// ownerOf is the name of the socket whose cookie a key of the hash begins with.
func (n *node) ownerOf(key []byte) string {
	for _, s := range n.sockets {
		if cookie, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil && cookie == binary.NativeEndian.Uint64(key) {
			return s.name
		}
	}
	return closedSocket
}

var attachTypes = map[string]ebpf.AttachType{
	"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
	"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg, "sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
	"recvmsg4": ebpf.AttachCGroupUDP4Recvmsg, "recvmsg6": ebpf.AttachCGroupUDP6Recvmsg,
	"getpeername4": ebpf.AttachCgroupInet4GetPeername, "getpeername6": ebpf.AttachCgroupInet6GetPeername,
	"sock_release": ebpf.AttachCgroupInetSockRelease,
	"post_bind4":   ebpf.AttachCGroupInet4PostBind, "post_bind6": ebpf.AttachCGroupInet6PostBind,
	"bind4": ebpf.AttachCGroupInet4Bind, "bind6": ebpf.AttachCGroupInet6Bind,
	"setsockopt": ebpf.AttachCGroupSetsockopt,
}

func attachedPrograms(t *testing.T) map[string][]uint32 {
	t.Helper()
	dir, err := os.Open(sandbox.Cgroup())
	require.NoError(t, err)
	defer dir.Close()
	all := make(map[string][]uint32)
	for hook, attach := range attachTypes {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: attach})
		require.NoError(t, err)
		all[hook] = nil
		for _, p := range attached.Programs {
			all[hook] = append(all[hook], uint32(p.ID))
		}
	}
	return all
}

// difference says in what two states differ, on a few lines.
func difference(want, got state) string {
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[key]; !ok {
			lines = append(lines, key+": gone")
		} else if g != want[key] {
			same := max(0, common(g, want[key])-40)
			lines = append(lines, fmt.Sprintf("%s: %s, not %s", key, short(g[same:]), short(want[key][same:])))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[key]; !ok {
			lines = append(lines, key+": "+short(got[key])+", which is to be absent")
		}
	}
	if len(lines) > 6 {
		lines = append(lines[:6], fmt.Sprintf("and %d more", len(lines)-6))
	}
	return strings.Join(lines, "\n\t")
}

var leaked = regexp.MustCompile(" ?" + closedSocket + " [0-9a-f]+=")

// differenceWithoutLeaks is difference, but for entries of the hash whose sockets are closed.
func differenceWithoutLeaks(want, got state) string {
	strip := func(s state) state {
		out := make(state)
		for key, value := range s {
			out[key] = leaked.ReplaceAllString(value, "")
		}
		return out
	}
	return difference(strip(want), strip(got))
}

// common is how long the beginning is that two texts have in common.
func common(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

func short(s string) string {
	if len(s) > 160 {
		return s[:160] + "…"
	}
	return s
}

// intercept runs a command of revsk of which decide sees each call.
func (n *node) intercept(decide func(call) verdict, args []string) outcome {
	n.Helper()
	return n.interceptOnly("", decide, args)
}

// interceptOnly is intercept of which decide sees the calls of one kind.
func (n *node) interceptOnly(kind string, decide func(call) verdict, args []string) outcome {
	n.Helper()
	o, err := intercept(context.Background(), decide, []string{onlyEnv + "=" + kind}, os.Getenv(binaryEnv), commandLine(args)...)
	require.NoError(n, err, args)
	return o
}
