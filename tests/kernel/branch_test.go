// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/netns"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// The tests TestBranch<number>_… show the branches of the datapath that docs/branches.md numbers. Each
// holds in every mode, whatever keeps the state.

// all turns on whatever is optional and needs no other namespace than that of the tests: its network
// namespace is the host's.
func all(t *testing.T) loader.Features {
	f := loader.DefaultFeatures()
	f.HostNetnsCookie = netnsCookie(t)
	f.HealthCheck = true
	return f
}

// none turns off whatever is optional.
func none(t *testing.T) loader.Features {
	return loader.Features{
		IPv4: true, IPv6: true, HostNetnsCookie: netnsCookie(t),
		ProtocolDifferentiation: referenceObject != nil, // which Cilium 1.20 cannot turn off
	}
}

// hookup is a program on its hook.
type hookup struct {
	program *ebpf.Program
	attach  ebpf.AttachType
}

// loaded are the programs for each set of features, by the name of their link. Loading takes seconds,
// so it is done once, and then the links are switched.
var loaded = make(map[loader.Features]map[string]hookup)

// withFeatures has the datapath run with these features until the end of the test.
func withFeatures(t *testing.T, f loader.Features) {
	t.Helper()
	former := programsFor(t, usual())
	wanted := programsFor(t, f)
	t.Cleanup(func() { switchTo(t, former) })
	switchTo(t, wanted)
}

func programsFor(t *testing.T, f loader.Features) map[string]hookup {
	t.Helper()
	if programs, ok := loaded[f]; ok {
		return programs
	}
	if f != usual() {
		opts := options()
		opts.Features = &f
		reload(t, opts)
	}
	loaded[f] = hookups(t)
	return loaded[f]
}

func linksDir(t *testing.T) string {
	t.Helper()
	full, err := options().WithDefaults()
	require.NoError(t, err)
	return filepath.Join(full.PinsDir, "links")
}

// hookups are what is attached now.
func hookups(t *testing.T) map[string]hookup {
	t.Helper()
	entries, err := os.ReadDir(linksDir(t))
	require.NoError(t, err)
	attached := make(map[string]hookup)
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(linksDir(t), e.Name()), nil)
		require.NoError(t, err)
		info, err := l.Info()
		require.NoError(t, err)
		require.NoError(t, l.Close())
		p, err := ebpf.NewProgramFromID(info.Program)
		require.NoError(t, err)
		attached[e.Name()] = hookup{p, ebpf.AttachType(info.Cgroup().AttachType)}
	}
	return attached
}

// switchTo attaches these programs, and detaches others.
func switchTo(t *testing.T, wanted map[string]hookup) {
	t.Helper()
	missing := make(map[string]*ebpf.Program)
	for name, h := range wanted {
		missing[name] = h.program
	}
	require.NoError(t, reference.Exchange(linksDir(t), missing))
	cgroup, err := os.Open(sandbox.Cgroup())
	require.NoError(t, err)
	defer cgroup.Close()
	for name, program := range missing {
		l, err := link.AttachRawLink(link.RawLinkOptions{
			Target: int(cgroup.Fd()), Program: program, Attach: wanted[name].attach,
		})
		require.NoError(t, err)
		require.NoError(t, l.Pin(filepath.Join(linksDir(t), name)))
		require.NoError(t, l.Close())
	}
}

const (
	nodePort = 30080
	hostPort = 8080
	// What a socket goes to in the place of an L7 service.
	proxyPort = firstPort + 3
)

// edges are the ports at both ends of the NodePort range, inside and outside.
var edges = []uint16{29999, 30000, 32767, 32768}

// startBranchServers serves more ports, in the namespace of the calling thread.
func startBranchServers() error {
	for _, port := range append(slices.Clone(edges), nodePort, hostPort) {
		errs := []error{serveDatagrams("udp4", int(port)), serveStreams("tcp4", int(port))}
		if haveIPv6 {
			errs = append(errs, serveDatagrams("udp6", int(port)), serveStreams("tcp6", int(port)))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

var branchServers = sync.OnceValue(startBranchServers)

// pod is a network namespace that is not the host's, with the same addresses and servers.
var pod = sync.OnceValues(func() (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return errors.Join(sandbox.LoopbackUp(), setUpNetwork(), startServers(), startBranchServers())
	})
	return ns, err
})

// onThread runs a function on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// podSocket opens a socket like the others in the pod.
func (s *scene) podSocket() *socket {
	s.Helper()
	ns, err := pod()
	require.NoError(s, err, "making a network namespace")
	var x *socket
	require.NoError(s, onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		x, err = newSocket(s.family, s.protocol)
		return err
	}))
	x.T = s.T
	s.sockets = append(s.sockets, x)
	return x
}

// netnsCookie is that of the namespace of the tests.
func netnsCookie(t *testing.T) uint64 {
	t.Helper()
	x, err := newSocket(ipv4, unix.IPPROTO_UDP)
	require.NoError(t, err)
	defer x.close()
	return cookieOfNetns(t, x)
}

// cookieOfNetns is the cookie of a socket's namespace.
func cookieOfNetns(t *testing.T, x *socket) uint64 {
	t.Helper()
	cookie, err := unix.GetsockoptUint64(x.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.14
		return cookieAsHooksSeeIt(t, x)
	}
	require.NoError(t, err, "SO_NETNS_COOKIE")
	return cookie
}

// cookieAsHooksSeeIt is the cookie of a socket's namespace, from a hook that runs as another socket is
// opened there.
func cookieAsHooksSeeIt(t *testing.T, x *socket) uint64 {
	t.Helper()
	told, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(t, err)
	defer told.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInetSockCreate, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.FnGetNetnsCookie.Call(), // of the context
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord),
			asm.LoadMapPtr(asm.R1, told.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -16),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, 1), asm.Return(),
		},
	})
	require.NoError(t, err)
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: sandbox.Cgroup(), Attach: ebpf.AttachCGroupInetSockCreate, Program: prog,
	})
	require.NoError(t, err)
	defer func() { assert.NoError(t, errors.Join(l.Detach(), l.Close())) }()
	ns, err := netns.OfSocket(x.fd)
	require.NoError(t, err)
	defer ns.Close()
	require.NoError(t, ns.Do(func() error {
		other, err := newSocket(ipv4, unix.IPPROTO_UDP)
		if err == nil {
			other.close()
		}
		return err
	}))
	var cookie uint64
	require.NoError(t, told.Lookup(uint32(0), &cookie))
	require.NotZero(t, cookie, "no hook has run")
	return cookie
}

// host is the n-th of the host's addresses that are not loopback. Every server is there.
func (s *scene) host(n int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(s.ownAddress().Addr(), n), port)
}

// loopback is the loopback address.
func (s *scene) loopback(port uint16) netip.AddrPort {
	if s.unroutable.Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), port)
}

// everywhere is the address of a service that is meant on every address of the node.
func (s *scene) everywhere(port uint16) netip.AddrPort {
	if s.unroutable.Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
}

// identify says in the ipcache whose an address is, until the end of the scene.
func (s *scene) identify(a netip.AddrPort, identity uint32, flags lbmap.IPCacheFlags) {
	s.Helper()
	prefix := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	require.NoError(s, tables.UpsertIPCache(prefix, lbmap.IPCacheValue{Identity: identity, Flags: flags}))
	s.Cleanup(func() {
		if err := tables.RemoveIPCache(prefix); err != nil {
			assert.ErrorIs(s, err, lbmap.ErrNotFound)
		}
	})
}

// to are the backends with these numbers.
func (s *scene) to(numbers ...int) []lbmap.Backend {
	var backends []lbmap.Backend
	for _, n := range numbers {
		backends = append(backends, lbmap.Backend{AddrPort: s.backendAt(n), Protocol: lbmap.Protocol(s.protocol)})
	}
	return backends
}

// put publishes a service of any kind until the end of the scene. What is returned has its first
// backend.
func (s *scene) put(at netip.AddrPort, flags lbmap.ServiceFlags, backends []lbmap.Backend, more ...func(*lbmap.Service)) *service {
	s.Helper()
	s.numbers++
	svc := lbmap.Service{Frontend: s.frontend(at), RevNat: uint16(s.numbers), Flags: flags, Backends: backends}
	for _, change := range more {
		change(&svc)
	}
	_, err := services.Upsert(s.Context(), svc)
	require.NoError(s, err)
	s.Cleanup(func() {
		if _, err := services.Delete(context.Background(), svc.Frontend); err != nil {
			assert.ErrorIs(s, err, lbmap.ErrNotFound)
		}
		if flags.Has(lbmap.FlagAffinity) {
			clearMap(s.T, lbmap.Affinity4Map)
			clearMap(s.T, lbmap.Affinity6Map)
		}
	})
	out := &service{front: at, revNat: svc.RevNat, protocol: s.protocol}
	if len(backends) > 0 {
		out.backend = backends[0].AddrPort
	}
	return out
}

// Changes of a service that put makes.
func anyProtocol(svc *lbmap.Service) {
	if referenceObject == nil { // Cilium 1.20 has no services for any protocol
		svc.Frontend.Protocol = lbmap.ProtocolAny
	}
}
func internal(svc *lbmap.Service) { svc.Frontend.Scope = lbmap.ScopeInternal }
func proxied(svc *lbmap.Service)  { svc.L7ProxyPort = proxyPort }

// reaches checks that sockets that connect or send to an address are answered by the server, and that
// the application sees the address.
func (s *scene) reaches(to, server netip.AddrPort) {
	s.Helper()
	s.reachesBy(s.socket, to, server)
}

func (s *scene) reachesBy(open func() *socket, to, server netip.AddrPort) {
	s.Helper()
	x := open()
	x.connect(to)
	same(s, to, x.peername(), "getpeername")
	s.talks(x, server, to)
	if s.datagram() {
		s.asks(open(), to, server, to)
		// In legacy mode, what an unconnected socket has sent to.
		s.mayLeak = s.mayLeak || s.mode == legacy
	}
}

// leaves checks that sockets that connect or send to an address get there.
func (s *scene) leaves(to netip.AddrPort) {
	s.Helper()
	s.leavesBy(s.socket, to)
}

func (s *scene) leavesBy(open func() *socket, to netip.AddrPort) {
	s.Helper()
	before := s.counters().Translated
	s.reachesBy(open, to, to)
	assert.Equal(s, before, s.counters().Translated, "translated calls")
	assert.Zero(s, s.sockets[len(s.sockets)-1].tuples())
}

// refuses checks that sockets that connect or send to an address are rejected for want of a backend.
func (s *scene) refuses(to netip.AddrPort) {
	s.Helper()
	s.rejectedNoBackend(s.socket().tryConnect(to))
	if s.datagram() {
		s.rejectedNoBackend(s.socket().trySendTo(to, "lost"))
	}
}

// holdWith is hold with features, and the servers of branches.
func holdWith(t *testing.T, f loader.Features, protocols []int, rules ...rule) {
	t.Helper()
	require.NoError(t, branchServers())
	if !canHave(t, f) {
		return
	}
	withFeatures(t, f)
	hold(t, protocols, rules...)
}
