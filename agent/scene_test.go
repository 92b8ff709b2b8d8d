// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/reference"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// node is a node with a place of its own on the BPF file system, that goes when the test ends.
type node struct {
	*testing.T
	dir    string
	writer *lbmap.Writer
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{T: t, dir: filepath.Join("/sys/fs/bpf", strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()))}
	require.NoError(t, os.Mkdir(n.dir, 0o700))
	t.Cleanup(func() {
		opts := n.loader()
		opts.Force = true
		_ = loader.Unload(context.Background(), opts, true)
		require.NoError(t, os.RemoveAll(n.dir))
	})
	return n
}

func (n *node) links() string { return filepath.Join(n.dir, "cilium", "socketlb", "links", "cgroup") }

func (n *node) loader() loader.Options {
	return loader.Options{
		Cgroup: sandbox.Cgroup(), PinsDir: filepath.Join(n.dir, "revsk"), MapsDir: filepath.Join(n.dir, "tc", "globals"),
		LegacyMaxEntries: 4096,
	}
}

// options are those of an agent on this node, that does not wait for long.
func (n *node) options() Options {
	return Options{
		Loader: n.loader(), Poll: 100 * time.Millisecond, LookEvery: 2 * time.Second, SurveyEvery: 2 * time.Second,
		Termination: Termination{Settle: 300 * time.Millisecond},
	}
}

// owner is another agent that runs on the node.
func (n *node) owner() *reference.Agent {
	n.Helper()
	o := n.newOwner()
	require.NoError(n, o.Link(sandbox.Cgroup(), n.links()))
	return o
}

// newOwner is another agent with its programs loaded, which are yet to be attached.
func (n *node) newOwner() *reference.Agent {
	n.Helper()
	o, err := reference.Hash(n.loader().MapsDir)
	require.NoError(n, err)
	n.Cleanup(func() { _ = o.Close() })
	return o
}

// running is an agent that runs beside the test.
type running struct {
	*Agent
	n    *node
	stop func() error

	mu     sync.Mutex
	events []Event
	// onEvent, if not nil, is told of each event.
	onEvent func(Event)
}

// start starts an agent, which is stopped when the test ends.
func (n *node) start(opts Options) *running {
	n.Helper()
	r := &running{n: n}
	opts.OnEvent = r.note
	var err error
	r.Agent, err = New(opts)
	require.NoError(n, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	n.Cleanup(func() { require.NoError(n, r.stop()) })
	return r
}

func (r *running) note(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if r.onEvent != nil {
		r.onEvent(e)
	}
	_, message, attrs := e.Line()
	r.n.Log(time.Now().Format("05.000"), message, attrs)
}

// configure changes the options.
func (r *running) configure(opts Options) {
	r.n.Helper()
	opts.OnEvent = r.note
	require.NoError(r.n, r.Configure(opts))
}

// eventsOf are those of a type that have happened.
func eventsOf[E Event](r *running) (all []E) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e, ok := e.(E); ok {
			all = append(all, e)
		}
	}
	return all
}

// awaits waits until something is the case, and returns how long that took.
func awaits(t testing.TB, what string, limit time.Duration, is func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !is() {
		if time.Since(begin) > limit {
			require.FailNow(t, "not within "+limit.String(), what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

const soon = 2 * time.Minute // on a machine that is busy

func (r *running) ready() {
	r.n.Helper()
	awaits(r.n, "ready", soon, func() bool { return r.Ready() == nil })
}

func (r *running) inMode(mode loader.Mode) {
	r.n.Helper()
	awaits(r.n, "mode "+mode.String(), soon, func() bool { return r.n.mode() == mode })
}

// mode is that of the datapath; legacy if there is none.
func (n *node) mode() loader.Mode {
	dp, err := loader.Open(n.loader())
	if err != nil {
		return loader.ModeLegacy
	}
	defer dp.Close()
	mode, err := dp.Mode()
	require.NoError(n, err)
	return mode
}

// backend is a server that echoes datagrams and accepts connections.
func (n *node) backend(addr string) netip.AddrPort {
	n.Helper()
	conn, listener, err := sandbox.ListenBoth(addr)
	require.NoError(n, err)
	n.Cleanup(func() { conn.Close() })
	n.Cleanup(func() { listener.Close() })
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	go func() {
		buf := make([]byte, 512)
		for {
			k, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:k], from)
		}
	}()
	return at
}

// services writes these services and no others.
func (n *node) services(all ...lbmap.Service) {
	n.Helper()
	if n.writer == nil {
		w, err := lbmap.OpenWriter(n.loader().MapsDir)
		require.NoError(n, err)
		n.Cleanup(func() { w.Close() })
		n.writer = w
	}
	_, err := n.writer.Sync(context.Background(), all)
	require.NoError(n, err)
}

func front(i int, p lbmap.Protocol) lbmap.Frontend {
	addr := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
	return lbmap.Frontend{AddrPort: netip.AddrPortFrom(addr, 53), Protocol: p}
}

// service is the i-th one.
func service(i int, p lbmap.Protocol, backends ...netip.AddrPort) lbmap.Service {
	s := lbmap.Service{Frontend: front(i, p)}
	for _, b := range backends {
		s.Backends = append(s.Backends, lbmap.Backend{AddrPort: b, Protocol: p})
	}
	return s
}

// client is a socket that is connected to a service.
type client struct {
	net.Conn
	service netip.AddrPort
}

func (n *node) client(f lbmap.Frontend) *client {
	n.Helper()
	return &client{n.dial(f.Protocol.String(), f.AddrPort), f.AddrPort}
}

func (n *node) dial(network string, to netip.AddrPort) net.Conn {
	n.Helper()
	conn, err := net.Dial(network, to.String())
	require.NoError(n, err)
	n.Cleanup(func() { conn.Close() })
	return conn
}

// backendOf is the backend that the socket is connected to.
func (n *node) backendOf(c *client) netip.AddrPort {
	n.Helper()
	dp, err := loader.Open(n.loader())
	require.NoError(n, err)
	defer dp.Close()
	all, err := inspect.Sockets(context.Background(), inspect.MapsOf(dp.Map), inspect.Options{SkipOwners: true})
	require.NoError(n, err)
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	for i := range all {
		if all[i].Local == local {
			return all[i].Peer
		}
	}
	require.FailNow(n, "no such socket")
	return netip.AddrPort{}
}

// asks sends a question and checks from whom the answer is.
func (c *client) asks() error {
	if err := c.shows(); err != nil {
		return err
	}
	udp, ok := c.Conn.(*net.UDPConn)
	if !ok {
		return nil
	}
	if _, err := udp.Write([]byte("question")); err != nil {
		return err
	}
	var buf [16]byte
	_ = udp.SetReadDeadline(time.Now().Add(soon))
	_, from, err := udp.ReadFromUDPAddrPort(buf[:])
	if err != nil {
		return err
	}
	if from != c.service {
		return fmt.Errorf("asked %v, answered by %v", c.service, from)
	}
	return nil
}

// peer is what the socket is connected to, as getpeername has it.
func (c *client) peer() (peer netip.AddrPort, err error) {
	raw, err := c.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return peer, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, err = unix.Getpeername(int(fd)); err != nil {
			return
		}
		peer = sockaddr.AddrPort(sa)
	})
	return peer, errors.Join(err, controlErr)
}

// shows checks what the socket is connected to.
func (c *client) shows() error {
	peer, err := c.peer()
	if err == nil && peer != c.service {
		err = fmt.Errorf("connected to %v, getpeername says %v", c.service, peer)
	}
	return err
}

// isEnded tells whether the socket was destroyed.
func (c *client) isEnded() bool {
	_, err := c.peer()
	return err != nil
}

// crowd are sockets that ask without pause.
type crowd struct {
	n              *node
	answers, wrong atomic.Int64
	first          atomic.Pointer[error]
	stop           func()
}

// newCrowd begins to ask the services: by sockets that live, and by new ones.
func (n *node) newCrowd(all ...lbmap.Frontend) *crowd {
	n.Helper()
	c := &crowd{n: n}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	ask := func(err error) {
		if err != nil {
			c.wrong.Add(1)
			c.first.CompareAndSwap(nil, &err)
			return
		}
		c.answers.Add(1)
	}
	for _, f := range all {
		old := n.client(f)
		wg.Go(func() {
			for ctx.Err() == nil {
				ask(old.asks())
				for range 20 {
					ask(old.shows())
				}
				time.Sleep(time.Millisecond)
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				conn, err := net.Dial(f.Protocol.String(), f.AddrPort.String())
				if err != nil {
					ask(err)
					continue
				}
				young := client{conn, f.AddrPort}
				for range 50 {
					ask(young.asks())
				}
				conn.Close()
				time.Sleep(time.Millisecond)
			}
		})
	}
	c.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	n.Cleanup(c.stop)
	return c
}

// owned makes another agent, a service of each protocol, and sockets that ask them without pause.
func (n *node) owned() (*reference.Agent, *crowd) {
	n.Helper()
	owner := n.owner()
	back := n.backend("127.0.0.1")
	udp, tcp := service(1, lbmap.ProtocolUDP, back), service(2, lbmap.ProtocolTCP, back)
	n.services(udp, tcp)
	return owner, n.newCrowd(udp.Frontend, tcp.Frontend)
}

// allRight ends the crowd and requires that every answer was that of a service.
func (c *crowd) allRight() {
	c.n.Helper()
	c.stop()
	c.n.Logf("%d answers, %d wrong", c.answers.Load(), c.wrong.Load())
	if err := c.first.Load(); err != nil {
		require.NoError(c.n, *err, "the first of %d wrong answers", c.wrong.Load())
	}
	require.Positive(c.n, c.answers.Load())
}
