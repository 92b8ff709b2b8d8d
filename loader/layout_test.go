// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/nextlayout"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// nextBuild has another layout of what sockets hold.
func nextBuild() loader.Options { return options().WithBuild(nextlayout.LoadNext) }

// layoutKind is a kind of socket in a layoutScene.
type layoutKind struct {
	name     string
	domain   int
	backends string // address
	fronts   func(i int) netip.AddrPort
}

var layoutKinds = []layoutKind{
	{"IPv4", unix.AF_INET, "127.0.0.1", func(i int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("10.96.1.%d:80", i)) }},
	{"IPv6", unix.AF_INET6, "::1", func(i int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("[fd00:96::%d]:80", i)) }},
	{"v4-mapped", unix.AF_INET6, "127.0.0.1", func(i int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("10.96.1.%d:80", i)) }},
}

// layoutServices is how many services there are in each family: more than a socket has slots, so that it
// needs a table.
const layoutServices = 12

// layoutScene has sockets that rely on what they hold.
type layoutScene struct {
	*testing.T
	askers  []func() error
	checks  []func() error // once, at the end
	answers atomic.Int64
	wrong   atomic.Int64
	stop    atomic.Bool
	running sync.WaitGroup
}

func newLayoutScene(t *testing.T) *layoutScene {
	t.Helper()
	require.NoError(t, sandbox.LoopbackUp())
	s := &layoutScene{T: t}
	w, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer w.Close()
	for _, k := range layoutKinds[:2] {
		for i := 1; i <= layoutServices; i++ {
			s.serve(w, k, i)
		}
	}
	for _, k := range layoutKinds {
		s.sockets(k)
	}
	t.Cleanup(s.end)
	return s
}

// serve makes a service with a backend that sends everything back, for datagrams and streams.
func (s *layoutScene) serve(w *lbmap.Writer, k layoutKind, i int) {
	packets, streams, err := sandbox.ListenBoth(k.backends)
	require.NoError(s, err)
	s.Cleanup(func() { packets.Close(); streams.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}()
	backend := packets.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, p := range []struct {
		name     string
		protocol lbmap.Protocol
	}{{"udp", lbmap.ProtocolUDP}, {"tcp", lbmap.ProtocolTCP}} {
		front, err := lbmap.ParseFrontend(k.fronts(i).String() + "/" + p.name)
		require.NoError(s, err)
		_, err = w.Upsert(s.Context(), lbmap.Service{Frontend: front, Backends: []lbmap.Backend{{AddrPort: backend, Protocol: p.protocol}}})
		require.NoError(s, err)
	}
}

// layoutSocket is a socket and its family.
type layoutSocket struct {
	fd   int
	kind layoutKind
}

func openLayoutSocket(k layoutKind, kind int) (*layoutSocket, error) {
	fd, err := unix.Socket(k.domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	x := &layoutSocket{fd, k}
	return x, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
}

func (x *layoutSocket) close() error { return unix.Close(x.fd) }

func (x *layoutSocket) connect(front netip.AddrPort) error {
	return retry(func() error { return unix.Connect(x.fd, sockaddr.Of(x.kind.domain, front)) })
}

func (x *layoutSocket) sendTo(front netip.AddrPort) error {
	return retry(func() error { return unix.Sendto(x.fd, []byte("question"), 0, sockaddr.Of(x.kind.domain, front)) })
}

// retry makes a call again that a signal of the runtime has interrupted.
func retry(call func() error) (err error) {
	for {
		if err = call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive tells where the next datagram comes from.
func (x *layoutSocket) receive(flags int) (source netip.AddrPort, err error) {
	err = retry(func() error {
		_, from, err := unix.Recvfrom(x.fd, make([]byte, 64), flags)
		source = sockaddr.AddrPort(from)
		return err
	})
	return source, err
}

// receives makes sure that the next datagram is the answer of a service.
func (x *layoutSocket) receives(front netip.AddrPort) error {
	source, err := x.receive(0)
	if err == nil && source != front {
		err = fmt.Errorf("received from %v, expected %v", source, front)
	}
	return err
}

// shows makes sure that the socket is connected to a service.
func (x *layoutSocket) shows(front netip.AddrPort) error {
	peer, err := unix.Getpeername(x.fd)
	if err == nil && sockaddr.AddrPort(peer) != front {
		err = fmt.Errorf("getpeername shows %v, expected %v", sockaddr.AddrPort(peer), front)
	}
	return err
}

// exchanges sends over a connection and reads what comes back.
func (x *layoutSocket) exchanges() error {
	send := func() error { _, err := unix.Write(x.fd, []byte("question")); return err }
	receive := func() error { _, err := unix.Read(x.fd, make([]byte, 64)); return err }
	if err := retry(send); err != nil {
		return err
	}
	return retry(receive)
}

// queued waits until an answer is in the receive queue.
func (x *layoutSocket) queued() error {
	_, err := x.receive(unix.MSG_PEEK)
	return err
}

// first returns the first error of some calls.
func first(calls ...error) error {
	for _, err := range calls {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *layoutScene) sockets(k layoutKind) {
	s.Helper()
	a, b := k.fronts(1), k.fronts(2)
	open := func(kind int) *layoutSocket {
		x, err := openLayoutSocket(k, kind)
		require.NoError(s, err)
		s.Cleanup(func() { x.close() })
		return x
	}
	ask := func(what string, f func() error) {
		s.askers = append(s.askers, func() error {
			if err := f(); err != nil {
				return fmt.Errorf("%s %s: %w", k.name, what, err)
			}
			return nil
		})
	}
	check := func(what string, f func() error) {
		s.checks = append(s.checks, func() error {
			if err := f(); err != nil {
				return fmt.Errorf("%s %s: %w", k.name, what, err)
			}
			return nil
		})
	}
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		x, silent := open(kind), open(kind)
		require.NoError(s, first(x.connect(a), silent.connect(b)))
		ask("connected", func() error {
			if err := x.exchanges(); err != nil {
				return err
			}
			return x.shows(a)
		})
		check("connected, silent", func() error { return first(silent.shows(b), silent.exchanges()) })
		ask("new", func() error {
			n, err := openLayoutSocket(k, kind)
			if err != nil {
				return err
			}
			defer n.close()
			if err := n.connect(b); err != nil {
				return err
			}
			if kind == unix.SOCK_STREAM { // there are not so many ports
				if err := unix.SetsockoptLinger(n.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
					return err
				}
			}
			return n.shows(b)
		})
	}
	for _, peers := range []int{3, layoutServices} {
		x, silent, next := open(unix.SOCK_DGRAM), open(unix.SOCK_DGRAM), 0
		for i := 1; i <= peers; i++ {
			require.NoError(s, silent.sendTo(k.fronts(i)))
		}
		ask(fmt.Sprintf("with %d peers", peers), func() error {
			next = next%peers + 1
			if err := x.sendTo(k.fronts(next)); err != nil {
				return err
			}
			return x.receives(k.fronts(next))
		})
		check(fmt.Sprintf("with %d peers, silent", peers), func() error {
			left := make(map[netip.AddrPort]bool)
			for i := 1; i <= peers; i++ {
				left[k.fronts(i)] = true
			}
			for range peers {
				source, err := silent.receive(0)
				if err != nil {
					return err
				}
				if !left[source] {
					return fmt.Errorf("received from %v", source)
				}
				delete(left, source)
			}
			return nil
		})
	}
	former := open(unix.SOCK_DGRAM)
	require.NoError(s, first(former.connect(a), former.sendTo(a), former.queued(), former.connect(b)))
	check("with an answer of its former connection", func() error { return first(former.receives(a), former.shows(b)) })
	back := open(unix.SOCK_DGRAM)
	require.NoError(s, back.connect(a))
	ask("reconnected", func() error {
		for _, to := range []netip.AddrPort{b, a} {
			if err := back.connect(to); err != nil {
				return err
			}
			if err := back.shows(to); err != nil {
				return err
			}
			if err := back.exchanges(); err != nil {
				return err
			}
		}
		return nil
	})
}

// ask lets all ask once.
func (s *layoutScene) ask() {
	s.Helper()
	for _, ask := range s.askers {
		require.NoError(s, ask())
	}
}

// begin lets all ask without pause.
func (s *layoutScene) begin() {
	const workers = 2
	for worker := range workers {
		s.running.Go(func() {
			for !s.stop.Load() {
				for i := worker; i < len(s.askers); i += workers {
					if err := s.askers[i](); err != nil {
						s.wrong.Add(1)
						s.Log(err)
						return
					}
					s.answers.Add(1)
				}
			}
		})
	}
	s.more()
}

// more waits until each has asked some more.
func (s *layoutScene) more() {
	s.Helper()
	until := s.answers.Load() + int64(5*len(s.askers))
	require.Eventually(s, func() bool { return s.answers.Load() >= until || s.wrong.Load() > 0 }, time.Minute, time.Millisecond)
	require.Zero(s, s.wrong.Load(), "wrong answers")
}

// end lets them stop.
func (s *layoutScene) end() {
	s.stop.Store(true)
	s.running.Wait()
}

// check asks those that were silent, once all are done.
func (s *layoutScene) check() {
	s.Helper()
	s.end()
	for _, check := range s.checks {
		assert.NoError(s, check())
	}
	assert.Zero(s, s.wrong.Load(), "wrong answers")
	s.Logf("%d answers", s.answers.Load())
}

// mustBePinned makes sure which versions of the layout have maps.
func mustBePinned(t *testing.T, one, two bool) {
	t.Helper()
	for _, name := range []string{"conn", "former", "peers"} {
		for path, want := range map[string]bool{pinsDir + "/revsk_" + name: one, pinsDir + "/revsk_" + name + "_v2": two} {
			if want {
				require.FileExists(t, path)
			} else {
				require.NoFileExists(t, path)
			}
		}
	}
	require.NoDirExists(t, pinsDir+"/switches")
}

// A build with the next layout takes over what sockets hold in the one before, and the build before is back
// by way of the hash, while sockets ask without pause.
func TestTheLayoutChangesUnderTraffic(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeMirror} {
		t.Run(mode.String(), func(t *testing.T) {
			opts := options()
			opts.LegacyMaxEntries = 4096
			load(t, withMode(opts, mode))
			s := newLayoutScene(t)
			s.begin()
			mustLoad(t, nextBuild())
			mustBePinned(t, true, true)
			requireRefused(t, loader.ErrLayout, func() error { return loadAndClose(t, options()) })
			s.more()
			if mode == loader.ModeMirror { // the hash has everything
				next, err := loader.Open(nextBuild())
				require.NoError(t, err)
				require.NoError(t, next.SetMode(t.Context(), loader.ModeLegacy, true))
				require.NoError(t, next.Close())
				s.more()
				mustLoad(t, options())
				mustBePinned(t, true, false)
				s.more()
			}
			s.check()
		})
	}
}

// When no socket has a value of the layout before any more, its maps go.
func TestMapsOfTheLayoutBeforeGoWithTheirLastValue(t *testing.T) {
	load(t, options())
	s := newLayoutScene(t)
	mustLoad(t, nextBuild())
	s.begin()
	mustLoad(t, nextBuild())
	mustBePinned(t, true, true)
	s.check() // all have been met
	mustLoad(t, nextBuild())
	mustBePinned(t, false, true)
	s.ask()
}

// ofSwitches tells the steps by which a layout changes.
func ofSwitches(step string) bool { return strings.Contains(step, "switch") }

// Killed at any step, a load of another layout leaves sockets that get right answers, and any build that can
// be loaded then goes on.
func TestKilledAtAnyStepOfAChangeOfTheLayout(t *testing.T) {
	load(t, options())
	s := newLayoutScene(t)
	s.ask()
	steps := 0
	for ; killed(t, "next", steps); steps++ {
		s.ask()
		if steps == 3 || steps == 9 {
			mustLoad(t, options())
			mustBePinned(t, true, false)
		}
	}
	require.Equal(t, 12, steps)
	s.ask()
	mustLoad(t, nextBuild())
	mustBePinned(t, true, true)
	s.check()
}

// A load that fails before sockets hold anything in the next layout is taken back.
func TestFailureBeforeTheLayoutChangesChangesNothing(t *testing.T) {
	load(t, options())
	s := newLayoutScene(t)
	s.ask()
	before := func(step string) bool { return ofSwitches(step) && step != "settle switches" }
	failAtEachStep(t, before, 11, nextBuild(), func(t *testing.T, opts loader.Options) error {
		_, err := loader.Load(context.Background(), opts)
		s.ask()
		return err
	})
	s.check()
}
