// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

// ground is where sockets of one kind are connected and terminated by one mechanism.
type ground struct {
	*testing.T
	*datapath
	family      Family
	protocol    lbmap.Protocol
	front, back netip.Addr
	destroyer   destroyer
	services    *int
}

// eachMechanism runs a test with both, where the kernel has what they need.
func eachMechanism(t *testing.T, f func(t *testing.T, d destroyer)) {
	t.Run("bpf", func(t *testing.T) {
		if oldkernel.Before(t, 6, 5) {
			oldkernel.Skip(t, 6, 5, "bpf_sock_destroy")
		}
		f(t, &bpfDestroyer{})
	})
	t.Run("diag", func(t *testing.T) { f(t, &diagDestroyer{}) })
}

// eachGround runs a test for sockets of every family and the protocols, by both mechanisms.
func eachGround(t *testing.T, protocols []lbmap.Protocol, f func(g *ground)) {
	eachMechanism(t, func(t *testing.T, d destroyer) {
		datapath, services := newDatapath(t), 0
		for _, protocol := range protocols {
			for _, kind := range []struct {
				name        string
				family      Family
				front, back string
			}{
				{"IPv4", IPv4, "10.96.0.1", "127.0.0.1"},
				{"IPv6", IPv6, "fd96::1", "::1"},
				{"v4-mapped", IPv6, "10.96.0.1", "127.0.0.1"},
			} {
				t.Run(fmt.Sprintf("%v %s", protocol, kind.name), func(t *testing.T) {
					f(&ground{
						T: t, datapath: datapath, family: kind.family, protocol: protocol, destroyer: d,
						front: netip.MustParseAddr(kind.front), back: netip.MustParseAddr(kind.back), services: &services,
					})
				})
			}
		}
	})
}

var (
	udp    = []lbmap.Protocol{lbmap.ProtocolUDP}
	tcp    = []lbmap.Protocol{lbmap.ProtocolTCP}
	either = []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDP}
)

// service adds a service with a backend of its own, where somebody listens if it is TCP's.
func (g *ground) service() service {
	g.Helper()
	backend := netip.AddrPortFrom(g.back, uint16(21000+*g.services))
	if g.protocol == lbmap.ProtocolTCP {
		open(g.T, g.family, g.protocol).listen(g.T, backend)
	}
	return g.serviceTo(backend)
}

func (g *ground) serviceTo(backend netip.AddrPort) service {
	g.Helper()
	*g.services++
	return g.addServiceFor(g.T, *g.services, g.front, backend, g.protocol)
}

func (g *ground) socket() *testSocket {
	g.Helper()
	return open(g.T, g.family, g.protocol)
}

func (g *ground) connected(to netip.AddrPort) *testSocket {
	g.Helper()
	s := g.socket()
	s.connect(g.T, to)
	return s
}

func (g *ground) options(backends ...netip.AddrPort) TerminateOptions {
	var opts TerminateOptions
	for _, b := range backends {
		opts.Backends = append(opts.Backends, Backend{b, g.protocol})
	}
	return opts
}

// end ends connections by the mechanism of the ground.
func (g *ground) end(opts TerminateOptions) (Report, error) {
	g.Helper()
	return terminateBy(g.T, g.Maps, opts, g.destroyer)
}

func terminateBy(t *testing.T, maps Maps, opts TerminateOptions, by ...destroyer) (Report, error) {
	t.Helper()
	terminator, err := OpenTerminator(maps, Options{})
	require.NoError(t, err)
	defer terminator.Close()
	terminator.destroyers = by
	return terminator.Terminate(t.Context(), opts)
}

// terminate ends the connections to a backend, and checks which sockets were found and destroyed.
func (g *ground) terminate(backend netip.AddrPort, want ...*testSocket) {
	g.Helper()
	g.terminateWith(g.options(backend), want...)
}

func (g *ground) terminateWith(opts TerminateOptions, want ...*testSocket) {
	g.Helper()
	report, err := g.end(opts)
	require.NoError(g, err)
	assert.ElementsMatch(g, inodes(g.T, want), reported(report, OutcomeDestroyed))
	assert.Len(g, report.Sockets, len(want), "%+v", report.Sockets)
	for _, s := range want {
		assert.Equal(g, unix.ECONNABORTED, s.error(g.T), "error that the application finds")
	}
}

func inodes(t *testing.T, sockets []*testSocket) []uint64 {
	all := []uint64{}
	for _, s := range sockets {
		all = append(all, s.inode(t))
	}
	return all
}

func reported(r Report, o Outcome) []uint64 {
	all := []uint64{}
	for _, s := range r.Sockets {
		if s.Outcome == o {
			all = append(all, s.Socket.Inode)
		}
	}
	return all
}

// error is the pending error of the socket.
func (s *testSocket) error(t testing.TB) unix.Errno {
	t.Helper()
	code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	require.NoError(t, err)
	return unix.Errno(code)
}

// peer is what the application sees itself connected to; the zero AddrPort if it is not.
func (s *testSocket) peer(t testing.TB) (a netip.AddrPort) {
	t.Helper()
	sa, err := unix.Getpeername(s.fd)
	if errors.Is(err, unix.ENOTCONN) {
		return a
	}
	require.NoError(t, err)
	return sockaddr.AddrPort(sa)
}

// alone checks that nothing happens to a socket while f runs.
func (g *ground) alone(s *testSocket, f func()) {
	g.Helper()
	local, peer := s.local(g.T), s.peer(g.T)
	_ = s.error(g.T) // a stream has one after its own disconnect
	f()
	assert.Zero(g, s.error(g.T), "error that the application finds")
	assert.Equal(g, local, s.local(g.T), "local address")
	assert.Equal(g, peer, s.peer(g.T), "getpeername")
}

func TestTerminatesSocketsConnectedToTheBackend(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone, kept := g.service(), g.service()
		other := g.connected(kept.front)
		a, b := g.connected(gone.front), g.connected(gone.front)
		g.alone(other, func() { g.terminate(gone.backend, a, b) })
		g.terminate(gone.backend)

		if g.protocol == lbmap.ProtocolUDP {
			assert.Zero(g, a.peer(g.T))
			a.connect(g.T, kept.front) // a destroyed datagram socket can be used again
			assert.Equal(g, kept.front, a.peer(g.T))
		}
	})
}

func TestTerminatesTheConnectionsOfSeveralBackends(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		x, y, kept := g.service(), g.service(), g.service()
		a, b := g.connected(x.front), g.connected(y.front)
		g.alone(g.connected(kept.front), func() { g.terminateWith(g.options(x.backend, y.backend), a, b) })
	})
}

func TestTerminatesThoseOfOneServiceOnly(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		x := g.service()
		y := g.serviceTo(x.backend)
		a, b := g.connected(x.front), g.connected(y.front)
		opts := g.options(x.backend)
		opts.Service.AddrPort = y.front
		g.alone(a, func() { g.terminateWith(opts, b) })
	})
}

func TestLeavesSocketsAloneThatHaveOnlySent(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone, kept := g.service(), g.service()
		sent, elsewhere := g.socket(), g.socket()
		sent.send(g.T, gone)
		elsewhere.connect(g.T, kept.front)
		elsewhere.send(g.T, gone)
		require.NotZero(g, sent.local(g.T).Port(), "a port that the kernel has chosen")
		g.alone(sent, func() { g.alone(elsewhere, func() { g.terminate(gone.backend) }) })
	})
}

func TestLeavesSocketsAloneThatHaveConnectedElsewhere(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone, kept := g.service(), g.service()
		toService, toBackend := g.connected(gone.front), g.connected(gone.front)
		if g.protocol == lbmap.ProtocolTCP {
			toService.disconnect(g.T)
			toBackend.disconnect(g.T)
		}
		toService.connect(g.T, kept.front)
		toBackend.connect(g.T, kept.backend)
		g.alone(toService, func() { g.alone(toBackend, func() { g.terminate(gone.backend) }) })
	})
}

func TestLeavesDisconnectedSocketsAlone(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		s, bound := g.connected(gone.front), g.socket()
		require.NoError(g, unix.Bind(bound.fd, bound.sockaddr(netip.AddrPortFrom(g.back, 31234))))
		bound.connect(g.T, gone.front)
		s.disconnect(g.T)
		bound.disconnect(g.T)
		require.EqualValues(g, 31234, bound.local(g.T).Port())
		g.alone(s, func() { g.alone(bound, func() { g.terminate(gone.backend) }) })
	})
}

func TestLeavesSocketsAloneThatAreConnectedWithoutAService(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		direct := g.connected(gone.backend)
		turned := g.connected(gone.front)
		if g.protocol == lbmap.ProtocolTCP {
			turned.disconnect(g.T)
		}
		turned.connect(g.T, gone.backend)
		g.alone(direct, func() { g.alone(turned, func() { g.terminate(gone.backend) }) })
	})
}

func TestLeavesSocketsOfOtherProtocolsAlone(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		other := *g
		other.protocol = lbmap.ProtocolTCP + lbmap.ProtocolUDP - g.protocol
		if other.protocol == lbmap.ProtocolTCP {
			open(g.T, g.family, other.protocol).listen(g.T, gone.backend)
		}
		same := other.serviceTo(gone.backend)
		s, left := g.connected(gone.front), other.connected(same.front)
		g.alone(left, func() { g.terminate(gone.backend, s) })

		opts := g.options(gone.backend)
		opts.Backends[0].Protocol = lbmap.ProtocolAny
		g.terminateWith(opts, left)
	})
}

func TestLeavesTheBackendsOwnSocketsAlone(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		backend := netip.AddrPortFrom(g.back, 21500)
		l := g.socket()
		l.listen(g.T, backend)
		svc := g.serviceTo(backend)
		s := g.connected(svc.front)
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		require.NoError(g, err)
		accepted := &testSocket{fd: fd, family: g.family}
		defer accepted.close()
		g.terminate(backend, s)
		// The other end's is what the kernel makes of an abort.
		assert.Equal(g, unix.ECONNRESET, accepted.error(g.T))
		g.connected(svc.front)
	})
}

func TestLeavesWhatListensNowAlone(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		s.disconnect(g.T)
		s.listen(g.T, netip.AddrPortFrom(g.back, 21501))
		g.terminate(gone.backend)
		g.connected(netip.AddrPortFrom(g.back, 21501))
	})
}

func TestTerminatesWhatIsAboutToConnect(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		backend := netip.AddrPortFrom(g.back, 21502)
		l := g.socket()
		require.NoError(g, unix.Bind(l.fd, l.sockaddr(backend)))
		require.NoError(g, unix.Listen(l.fd, 0))
		g.connected(backend) // which fills the queue, so that the kernel does not answer the next
		svc := g.serviceTo(backend)
		s := g.socket()
		require.NoError(g, unix.SetNonblock(s.fd, true))
		require.ErrorIs(g, unix.Connect(s.fd, s.sockaddr(svc.front)), unix.EINPROGRESS)
		g.terminate(backend, s)
	})
}

func TestTerminatesHalfClosedConnections(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		require.NoError(g, unix.Shutdown(s.fd, unix.SHUT_WR))
		g.terminate(gone.backend, s)
	})
}

func TestLeavesWhatTheApplicationHasClosedToTheKernel(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		s.fill(g.T)
		s.closeAtOnce(g.T)
		g.terminate(gone.backend)
	})
}

// The application closes it after it was found.
func TestLeavesWhatTheApplicationClosesMeanwhileToTheKernel(t *testing.T) {
	eachGround(t, tcp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		s.fill(g.T)
		victims := g.victims(gone)
		require.Len(g, victims, 1)
		s.closeAtOnce(g.T)
		require.NoError(g, g.destroyer.destroy(g.Context(), victims))
		assert.Equal(g, OutcomeLeft, victims[0].Outcome)
	})
}

// The kernel rejects a connect elsewhere after the hook has run: the socket still is connected.
func TestTerminatesWhatItsReconnectHasFailed(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		for _, sends := range []int{0, 5} { // more than there are slots
			gone := g.service()
			far := g.serviceTo(netip.AddrPortFrom(g.front, 7))
			var s *testSocket
			inNetNS(g.T, func() {
				s = g.connected(gone.front)
				for range sends {
					s.send(g.T, g.service())
				}
				// A new namespace has no route but to itself.
				require.ErrorIs(g, unix.Connect(s.fd, s.sockaddr(far.front)), unix.ENETUNREACH)
			})
			require.Equal(g, gone.front, s.peer(g.T))
			g.alone(s, func() { g.terminate(far.backend) })
			g.terminate(gone.backend, s)
		}
	})
}

// Threads connect one socket without waiting for each other, and the kernel comes last to a connect whose hook
// another has overtaken. That is the connection then, as getpeername has it, wherever the socket remembers it; others are not, however
// often they were overtaken.
func TestTerminatesWhatAnotherConnectHasOvertaken(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		for _, sends := range []int{0, 5} { // more than there are slots
			s := g.socket()
			for range sends {
				s.send(g.T, g.service())
			}
			overtaken := []service{g.service(), g.service()}
			former, conn := g.service(), g.service()
			for _, svc := range append(overtaken, former, conn) {
				s.connect(g.T, svc.front)
			}
			// The kernel's part, which comes after that of the hook.
			g.detach()
			s.connect(g.T, overtaken[1].backend)
			g.attach(g.T)
			require.Equal(g, overtaken[1].front, s.peer(g.T))

			g.alone(s, func() { g.terminateWith(g.options(overtaken[0].backend, former.backend, conn.backend)) })
			opts := g.options(overtaken[1].backend)
			opts.Service.AddrPort = conn.front
			g.alone(s, func() { g.terminateWith(opts) })
			opts.Service.AddrPort = overtaken[1].front
			g.terminateWith(opts, s)
		}
	})
}

func TestTerminatesInEveryNamespace(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		names := g.TempDir()
		var gone service
		var named, unnamed, here *testSocket
		gone = g.service()
		here = g.connected(gone.front)
		// In other namespaces the address leads to others, but to the same backend for the service.
		inside := func() *testSocket {
			if g.protocol == lbmap.ProtocolTCP {
				open(g.T, g.family, g.protocol).listen(g.T, gone.backend)
			}
			return g.connected(gone.front)
		}
		inNetNS(g.T, func() {
			nameNetNS(g.T, names, "blue")
			named = inside()
		})
		// Only sockets keep this one.
		inNetNS(g.T, func() { unnamed = inside() })
		g.terminate(gone.backend, named, unnamed, here)
	})
}

func TestASocketInFlightInANamespaceThatNothingElseKeepsIsReported(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		var s *testSocket
		inNetNS(g.T, func() { s = g.connected(gone.front) })
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(g, err)
		require.NoError(g, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(s.fd), nil, 0))
		inode := s.inode(g.T)
		s.close()
		for _, dryRun := range []bool{true, false} {
			opts := g.options(gone.backend)
			opts.DryRun = dryRun
			report, err := g.end(opts)
			require.NoError(g, err)
			assert.Equal(g, []uint64{inode}, reported(report, OutcomeFailed))
			require.Len(g, report.Sockets, 1)
			assert.ErrorIs(g, report.Sockets[0].Err, ErrUnreachable)
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	})
}

func TestADryRunDestroysNothing(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		opts := g.options(gone.backend)
		opts.DryRun = true
		g.alone(s, func() {
			report, err := g.end(opts)
			require.NoError(g, err)
			assert.Equal(g, []uint64{s.inode(g.T)}, reported(report, OutcomeFound))
			assert.Len(g, report.Sockets, 1)
			assert.Equal(g, g.destroyer.name(), report.Mechanism)
		})
	})
}

// What a destroyer is told may be outdated when it comes to the socket.
func TestASocketThatTurnsAwayMeanwhileIsLeftAlone(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone, kept := g.service(), g.service()
		again := g.serviceTo(gone.backend)
		for _, way := range []struct {
			name string
			// Nothing but the lock of the socket makes sure of it.
			onlyLocked bool
			turn       func(s *testSocket)
		}{
			{"disconnect", false, func(s *testSocket) { s.disconnect(g.T) }},
			{"connect elsewhere", false, func(s *testSocket) { s.disconnect(g.T); s.connect(g.T, kept.front) }},
			{"connect without service", true, func(s *testSocket) { s.disconnect(g.T); s.connect(g.T, gone.backend) }},
			{"connect by another service", true, func(s *testSocket) { s.disconnect(g.T); s.connect(g.T, again.front) }},
			{"connect by the service to another backend", false, func(s *testSocket) {
				g.moveTo(gone, otherAddress(gone.backend))
				s.disconnect(g.T)
				s.connect(g.T, gone.front)
			}},
		} {
			s := g.socket()
			// The same port afterwards, so that nothing but what the kernel and the hooks know differs.
			require.NoError(g, unix.Bind(s.fd, s.sockaddr(netip.AddrPortFrom(g.back, 31235))))
			s.connect(g.T, gone.front)
			victims := g.victims(gone)
			require.Len(g, victims, 1, way.name)
			way.turn(s)
			destroy := func() { require.NoError(g, g.destroyer.destroy(g.Context(), victims)) }
			if _, locked := g.destroyer.(*bpfDestroyer); way.onlyLocked && !locked {
				destroy()
				assert.Equal(g, OutcomeDestroyed, victims[0].Outcome, way.name)
			} else {
				g.alone(s, destroy)
				assert.Equal(g, OutcomeLeft, victims[0].Outcome, way.name)
			}
			s.abandon(g.T)
		}
	})
}

// otherAddress has the same port; IPv6 has one loopback address only.
func otherAddress(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(a.Addr().Next(), a.Port())
	}
	return netip.AddrPortFrom(a.Addr(), a.Port()+10000)
}

// moveTo gives a service another backend.
func (g *ground) moveTo(svc service, backend netip.AddrPort) {
	g.Helper()
	if g.protocol == lbmap.ProtocolTCP {
		open(g.T, g.family, g.protocol).listen(g.T, backend)
	}
	_, err := lbmap.NewWriter(&g.tables).Upsert(g.Context(), lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: svc.front, Protocol: g.protocol},
		RevNat:   svc.index,
		Backends: []lbmap.Backend{{AddrPort: backend, Protocol: g.protocol}},
	})
	require.NoError(g, err)
}

// abandon closes the socket without leaving anything of its connection behind.
func (s *testSocket) abandon(t testing.TB) {
	t.Helper()
	require.NoError(t, unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	s.closeAtOnce(t)
}

// victims are what Terminate finds to destroy.
func (g *ground) victims(gone service) []*Termination {
	g.Helper()
	require.NoError(g, g.destroyer.load(g.Maps))
	g.Cleanup(g.destroyer.close)
	opts := g.options(gone.backend)
	opts.Service.AddrPort = gone.front
	reader, err := Open(g.Maps, Options{})
	require.NoError(g, err)
	defer reader.Close()
	found := termination{
		Terminator: &Terminator{maps: g.Maps, reader: reader}, opts: opts,
		meant: Filter{Service: opts.Service, Backends: NewBackendSet(opts.Backends...), Connected: true},
		found: make(map[SocketID]*Termination),
	}
	victims, err := found.connected(g.Context(), 0)
	require.NoError(g, err)
	return victims
}

func TestBothMechanismsDestroyTheSame(t *testing.T) {
	if oldkernel.Before(t, 6, 5) {
		oldkernel.Skip(t, 6, 5, "bpf_sock_destroy")
	}
	d := newDatapath(t)
	var outcomes [2][]string
	for i, mechanism := range []destroyer{&bpfDestroyer{}, &diagDestroyer{}} {
		g := &ground{
			T: t, datapath: d, family: IPv4, protocol: lbmap.ProtocolUDP, destroyer: mechanism,
			front: netip.MustParseAddr("10.96.0.1"), back: netip.MustParseAddr("127.0.0.1"),
		}
		var sockets []*testSocket
		for n := range 200 {
			s := g.socket()
			if n%2 == 0 {
				s.connect(t, g.shared(1).front)
			}
			if n%3 == 0 {
				s.send(t, g.shared(2))
			}
			if n%5 == 0 {
				s.connect(t, g.shared(2).front)
			}
			if n%7 == 0 {
				s.disconnect(t)
			}
			if n%11 == 0 {
				s.connect(t, g.shared(2).backend)
			}
			sockets = append(sockets, s)
		}
		report, err := g.end(g.options(g.shared(2).backend))
		require.NoError(t, err)
		assert.Equal(t, mechanism.name(), report.Mechanism)
		for _, s := range sockets {
			outcomes[i] = append(outcomes[i], s.error(t).Error())
			s.close()
		}
		destroyed := 0
		for n := range 200 {
			if n%5 == 0 && n%7 != 0 && n%11 != 0 {
				destroyed++
			}
		}
		assert.Equal(t, destroyed, report.Count(OutcomeDestroyed))
	}
	assert.Equal(t, outcomes[0], outcomes[1])
}

// shared is a service that is the same in every call with n.
func (g *ground) shared(n int) service {
	return g.addServiceFor(g.T, n, g.front, netip.AddrPortFrom(g.back, uint16(21600+n)), g.protocol)
}

func TestConnectionsThatComeMeanwhileEndToo(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		first := g.connected(gone.front)
		var late *testSocket
		g.destroyer = &beforeDestroying{g.destroyer, func() {
			if late == nil {
				late = g.connected(gone.front)
			}
		}}
		report, err := g.end(g.options(gone.backend))
		require.NoError(g, err)
		assert.ElementsMatch(g, inodes(g.T, []*testSocket{first, late}), reported(report, OutcomeDestroyed))
	})
}

// beforeDestroying does something else before every round.
type beforeDestroying struct {
	destroyer
	do func()
}

func (b *beforeDestroying) destroy(ctx context.Context, sockets []*Termination) error {
	b.do()
	return b.destroyer.destroy(ctx, sockets)
}

func TestASocketThatConnectsAgainAndAgainIsReported(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		s := g.socket()
		require.NoError(g, unix.Bind(s.fd, s.sockaddr(netip.AddrPortFrom(g.back, 31236))))
		s.connect(g.T, gone.front)
		destroyed := 0
		inner := g.destroyer
		g.destroyer = &afterDestroying{inner, func() { destroyed++; s.connect(g.T, gone.front) }}
		report, err := g.end(g.options(gone.backend))
		require.NoError(g, err)
		assert.Equal(g, rounds, destroyed)
		require.Len(g, report.Sockets, 1)
		assert.Equal(g, OutcomeFailed, report.Sockets[0].Outcome)
		assert.ErrorIs(g, report.Sockets[0].Err, ErrStillConnected)
	})
}

type afterDestroying struct {
	destroyer
	do func()
}

func (a *afterDestroying) destroy(ctx context.Context, sockets []*Termination) error {
	err := a.destroyer.destroy(ctx, sockets)
	a.do()
	return err
}

// cannot is a mechanism that the kernel does not have.
type cannot struct{ destroyer }

func (cannot) load(Maps) error { return fmt.Errorf("this %w", errCannot) }

func TestTheOtherMechanismIsTakenWhereOneIsMissing(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		opts := g.options(gone.backend)
		g.alone(s, func() {
			_, err := terminateBy(g.T, g.Maps, opts, cannot{})
			assert.ErrorIs(g, err, ErrCannotDestroy)
		})
		report, err := terminateBy(g.T, g.Maps, opts, cannot{}, g.destroyer, cannot{})
		require.NoError(g, err)
		assert.Equal(g, []uint64{s.inode(g)}, reported(report, OutcomeDestroyed))
	})
}

func TestTheKernelsBestMechanismIsChosen(t *testing.T) {
	want := (&bpfDestroyer{}).name()
	if oldkernel.Before(t, 6, 5) {
		want = diagDestroyer{}.name()
	}
	d := newDatapath(t)
	svc := d.addService(t, 0, false, lbmap.ProtocolUDP)
	s := open(t, IPv4, lbmap.ProtocolUDP)
	s.connect(t, svc.front)
	report, err := Terminate(t.Context(), d.Maps, TerminateOptions{Backends: []Backend{{svc.backend, lbmap.ProtocolUDP}}})
	require.NoError(t, err)
	assert.Equal(t, want, report.Mechanism)
	assert.Equal(t, 1, report.Count(OutcomeDestroyed))
}

func TestAProgramThatTheKernelCannotRunIsMissing(t *testing.T) {
	d := newDatapath(t)
	b := &bpfDestroyer{}
	if err := b.load(d.Maps); err != nil {
		assert.ErrorIs(t, err, errCannot, "a kernel without bpf_sock_destroy")
	} else {
		b.close()
	}
	assert.ErrorIs(t, b.load(Maps{Conn: d.Peers, Former: d.Former, Peers: d.Conn, Tables: d.Tables}), ebpf.ErrMapIncompatible)
}

func TestModeLegacyIsRefused(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		s := g.connected(gone.front)
		g.setMode(sock.SockRevskModeREVSK_MODE_LEGACY)
		for _, dryRun := range []bool{true, false} {
			opts := g.options(gone.backend)
			opts.DryRun = dryRun
			g.alone(s, func() {
				_, err := g.end(opts)
				assert.ErrorIs(g, err, ErrNoProof)
			})
		}
		g.setMode(sock.SockRevskModeREVSK_MODE_DUAL)
		g.terminate(gone.backend, s)
	})
}

func (g *ground) setMode(mode sock.SockRevskMode) {
	g.Helper()
	set := func(mode sock.SockRevskMode) {
		require.NoError(g, g.Config.Put(uint32(0), sock.SockRevskConfigValue{Mode: uint32(mode)}))
	}
	set(mode)
	g.Cleanup(func() { set(sock.SockRevskModeREVSK_MODE_STORAGE) })
}

// An application that reads its error first finds ECONNABORTED. One that sends a datagram first finds that nobody is named to
// whom to send it, and the reason afterwards; for a stream both are the same.
func TestWhatTheNextCallFindsOfASocketThatWasEnded(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		reads, sends := g.connected(gone.front), g.connected(gone.front)
		report, err := g.end(g.options(gone.backend))
		require.NoError(g, err)
		require.Equal(g, 2, report.Count(OutcomeDestroyed))
		_, err = unix.Read(reads.fd, make([]byte, 1))
		assert.Equal(g, unix.ECONNABORTED, err)
		err = unix.Send(sends.fd, []byte("x"), unix.MSG_NOSIGNAL)
		if g.protocol == lbmap.ProtocolUDP {
			assert.Equal(g, unix.EDESTADDRREQ, err)
			assert.Equal(g, unix.ECONNABORTED, sends.error(g.T))
		} else {
			assert.Equal(g, unix.ECONNABORTED, err)
		}
	})
}

// Of datagram sockets over IPv6 the kernel keeps the address of the former peer, and drops what others send them. What the
// application can do is to connect anew.
func TestADatagramSocketThatWasEndedAndGoesOnWithoutConnecting(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		addr := netip.MustParseAddr("127.0.0.2")
		if g.back.Is6() {
			addr = netip.MustParseAddr("fd00:2::2")
			lo, err := netlink.LinkByName("lo")
			require.NoError(g, err)
			also := &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice()), Flags: unix.IFA_F_NODAD}
			require.NoError(g, netlink.AddrAdd(lo, also))
			g.Cleanup(func() { require.NoError(g, netlink.AddrDel(lo, also)) })
		}
		echo := open(g.T, g.family, g.protocol)
		require.NoError(g, unix.Bind(echo.fd, echo.sockaddr(netip.AddrPortFrom(addr, 31237))))
		gone, other := g.service(), g.serviceTo(netip.AddrPortFrom(addr, 31237))
		s := g.connected(gone.front)
		g.terminate(gone.backend, s)
		answered := func(to *netip.AddrPort, want bool) {
			if to != nil {
				require.NoError(g, s.sendTo(*to))
			} else {
				_, err := unix.Write(s.fd, []byte("hello"))
				require.NoError(g, err)
			}
			buf := make([]byte, 16)
			n, from, err := unix.Recvfrom(echo.fd, buf, 0)
			require.NoError(g, err)
			require.NoError(g, unix.Sendto(echo.fd, buf[:n], 0, from))
			// It goes through the loopback device, at once unless the machine is busy.
			patience := unix.Timeval{Usec: 200_000}
			if want {
				patience = unix.Timeval{Sec: 60}
			}
			require.NoError(g, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
			_, from, err = unix.Recvfrom(s.fd, buf, 0)
			assert.Equal(g, want, err == nil, "an answer: %v", err)
			if err == nil {
				assert.Equal(g, other.front, sockaddr.AddrPort(from), "who answers")
			}
		}
		answered(&other.front, g.back.Is4())
		s.connect(g.T, other.front)
		answered(nil, true)
	})
}

// As many backends as one likes are looked for in one pass over the sockets.
func TestTerminatesTheConnectionsOfThousandsOfBackends(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		first, last, kept := g.service(), g.service(), g.service()
		a, b, other := g.connected(first.front), g.connected(last.front), g.connected(kept.front)
		backends := []netip.AddrPort{first.backend}
		for i := range 5000 {
			addr := netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
			backends = append(backends, netip.AddrPortFrom(addr, first.backend.Port()))
		}
		backends = append(backends, last.backend)
		g.alone(other, func() { g.terminateWith(g.options(backends...), a, b) })
	})
}

// A terminator ends sockets again and again, with programs that are loaded once.
func TestATerminatorEndsAsOftenAsOneLikes(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		terminator, err := OpenTerminator(g.Maps, Options{BufferSize: minBuffer})
		require.NoError(g, err)
		loads := 0
		terminator.destroyers = []destroyer{&countedLoads{g.destroyer, &loads}}
		first, second := g.service(), g.service()
		for round := range 3 {
			a, b := g.connected(first.front), g.connected(second.front)
			connected, err := terminator.ConnectedBackends(g.Context())
			require.NoError(g, err)
			require.ElementsMatch(g, []Backend{{first.backend, g.protocol}, {second.backend, g.protocol}}, connected)
			report, err := terminator.Terminate(g.Context(), g.options(first.backend))
			require.NoError(g, err)
			require.Equal(g, []uint64{a.inode(g)}, reported(report, OutcomeDestroyed), "round %d", round)
			report, err = terminator.Terminate(g.Context(), g.options(first.backend))
			require.NoError(g, err)
			require.Empty(g, report.Sockets)
			require.Empty(g, report.Mechanism, "none was needed")
			a.close()
			b.close()
		}
		require.Equal(g, 1, loads)
		require.NoError(g, terminator.Close())
		require.ErrorIs(g, terminator.Close(), ErrInUse)
		_, err = terminator.Terminate(g.Context(), TerminateOptions{})
		require.ErrorIs(g, err, ErrInUse)
	})
}

type countedLoads struct {
	destroyer
	loads *int
}

func (c *countedLoads) load(maps Maps) error {
	*c.loads++
	return c.destroyer.load(maps)
}

func TestTerminateReturnsItsErrors(t *testing.T) {
	d := newDatapath(t)
	for _, maps := range []Maps{
		{},
		{Conn: d.Conn, Peers: d.Peers, Tables: d.Tables},
		{Peers: d.Peers, Tables: d.Tables, Config: d.Config},
	} {
		_, err := Terminate(t.Context(), maps, TerminateOptions{})
		assert.ErrorIs(t, err, ErrNoMap)
	}
	svc := d.addService(t, 0, false, lbmap.ProtocolUDP)
	open(t, IPv4, lbmap.ProtocolUDP).connect(t, svc.front)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Terminate(ctx, d.Maps, TerminateOptions{Backends: []Backend{{svc.backend, lbmap.ProtocolUDP}}})
	assert.ErrorIs(t, err, context.Canceled)
}

func TestAReportIsSorted(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		for range 20 {
			g.connected(gone.front)
		}
		report, err := g.end(g.options(gone.backend))
		require.NoError(g, err)
		require.Len(g, report.Sockets, 20)
		assert.True(g, slices.IsSortedFunc(report.Sockets, func(a, b Termination) int { return compareSockets(a.Socket, b.Socket) }))
	})
}

// What only the hash knows is no proof, but no reason to say that nobody is connected either.
func TestSocketsThatOnlyTheHashKnowsAreSaidToNeedAMigration(t *testing.T) {
	for _, mode := range []sock.SockRevskMode{sock.SockRevskModeREVSK_MODE_DUAL, sock.SockRevskModeREVSK_MODE_MIRROR} {
		eachGround(t, either, func(g *ground) {
			svc := g.service()
			g.setMode(sock.SockRevskModeREVSK_MODE_LEGACY)
			unknown, gone := g.connected(svc.front), g.connected(svc.front)
			gone.disconnect(g)
			g.setMode(mode)
			opts := g.options(svc.backend)
			report, err := g.end(opts)
			require.ErrorIs(g, err, ErrUnmigrated)
			assert.Equal(g, 1, report.Unmigrated)
			assert.Empty(g, report.Sockets)

			known := g.connected(svc.front)
			report, err = g.end(opts)
			require.ErrorIs(g, err, ErrUnmigrated)
			assert.Equal(g, 1, report.Unmigrated)
			assert.Equal(g, 1, report.Count(OutcomeDestroyed))
			assert.Equal(g, known.inode(g), report.Sockets[0].Socket.Inode)

			// Another backend has nothing to do with it.
			opts.Backends[0].AddrPort = netip.AddrPortFrom(g.back, 9)
			_, err = g.end(opts)
			require.NoError(g, err)
			unknown.close()
		})
	}
}

func TestTerminatesSoManyAtMost(t *testing.T) {
	eachGround(t, either, func(g *ground) {
		gone := g.service()
		a, b, c := g.connected(gone.front), g.connected(gone.front), g.connected(gone.front)
		opts := g.options(gone.backend)
		opts.Most = 2
		report, err := g.end(opts)
		require.NoError(g, err)
		require.True(g, report.More)
		require.Equal(g, 2, report.Count(OutcomeDestroyed))
		report, err = g.end(opts)
		require.NoError(g, err)
		require.False(g, report.More)
		require.Equal(g, 1, report.Count(OutcomeDestroyed))
		for _, s := range []*testSocket{a, b, c} {
			require.NotZero(g, s.error(g.T))
		}
	})
}

// A process with many sockets does not make another wait.
func TestAProcessWithManySocketsKeepsNobodyWaiting(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		var many []*testSocket
		for range 20 {
			many = append(many, g.connected(gone.front))
		}
		one := g.connected(gone.front)
		for range 20 {
			many = append(many, g.connected(gone.front))
		}
		startChild(g, many...)
		for _, s := range many {
			s.close()
		}
		opts := g.options(gone.backend)
		opts.Most = 2
		report, err := g.end(opts)
		require.NoError(g, err)
		require.True(g, report.More)
		require.Equal(g, 2, report.Count(OutcomeDestroyed))
		require.NotZero(g, one.error(g.T))
	})
}

// Sockets that cannot be ended do not keep others from being ended, however many they are.
func TestSocketsThatCannotBeEndedTakeNobodysPlace(t *testing.T) {
	eachGround(t, udp, func(g *ground) {
		gone := g.service()
		var unreachable []*testSocket
		var fds []int
		inNetNS(g.T, func() {
			for range 5 {
				s := g.connected(gone.front)
				unreachable, fds = append(unreachable, s), append(fds, s.fd)
			}
		})
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(g, err)
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		require.NoError(g, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fds...), nil, 0))
		for _, s := range unreachable {
			s.close()
		}
		opts := g.options(gone.backend)
		opts.DryRun = true
		// The thread that has been in their namespace may take a moment to end.
		require.Eventually(g, func() bool {
			report, err := g.end(opts)
			return err == nil && report.Count(OutcomeFailed) == len(unreachable)
		}, time.Minute, 10*time.Millisecond)
		live := []*testSocket{g.connected(gone.front), g.connected(gone.front)}
		opts.DryRun, opts.Most = false, 1
		for range live {
			report, err := g.end(opts)
			require.NoError(g, err)
			require.Equal(g, 1, report.Count(OutcomeDestroyed))
		}
		for _, s := range live {
			require.NotZero(g, s.error(g.T))
		}
		report, err := g.end(opts)
		require.NoError(g, err)
		require.False(g, report.More)
		require.Len(g, reported(report, OutcomeFailed), len(unreachable))
	})
}
