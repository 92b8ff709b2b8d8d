// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// rule is a rule of the datapath, and a scene that shows that it holds.
type rule struct {
	name string
	// notLegacy says why the rule does not hold in legacy mode, whose hash is the reason that the
	// other modes exist. TestLegacyMode shows what happens there instead.
	notLegacy string
	// notReference says why it does not hold for the reference's own programs (see reference_test.go).
	notReference string
	play         func(s *scene)
}

var (
	udp    = []int{unix.IPPROTO_UDP}
	tcp    = []int{unix.IPPROTO_TCP}
	either = []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP}

	legacy = loader.ModeLegacy
	modes  = []loader.Mode{loader.ModeStorage, loader.ModeMirror, loader.ModeDual, loader.ModeLegacy}
)

// hold plays each rule with sockets of the protocols, in every family and mode.
func hold(t *testing.T, protocols []int, rules ...rule) {
	t.Helper()
	for _, r := range rules {
		if r.notReference != "" && referenceObject != nil {
			t.Logf("%s: not with the reference's programs: %s", r.name, r.notReference)
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			for _, mode := range modes {
				if mode == loader.ModeLegacy && r.notLegacy != "" {
					continue
				}
				t.Run(mode.String(), func(t *testing.T) {
					for _, protocol := range protocols {
						holdIn(t, mode, protocol, r.play)
					}
				})
			}
		})
	}
}

// holdIn plays a rule with sockets of every family.
func holdIn(t *testing.T, mode loader.Mode, protocol int, play func(s *scene)) {
	t.Helper()
	for _, f := range families {
		t.Run(fmt.Sprintf("%v-%s", lbmap.Protocol(protocol), f.name), func(t *testing.T) {
			play(newScene(t, mode, f, protocol))
		})
	}
}

// scene is what a rule plays with: services, and sockets of one kind. At its end it closes them, and
// the books must balance.
type scene struct {
	*testing.T
	family
	protocol int
	mode     loader.Mode
	sockets  []*socket
	services []*service
	numbers  int // given to services
	before   loader.Counters
	hashed   int  // entries in the legacy maps before
	mayLeak  bool // entries in the legacy maps may be left
	asked    int
}

// service is a service with one backend, or none.
type service struct {
	front    netip.AddrPort
	backend  netip.AddrPort
	revNat   uint16
	protocol int
}

func (svc *service) frontend() lbmap.Frontend {
	return lbmap.Frontend{AddrPort: svc.front, Protocol: lbmap.Protocol(svc.protocol)}
}

func newScene(t *testing.T, mode loader.Mode, f family, protocol int) *scene {
	t.Helper()
	needFamily(t, f)
	s := &scene{T: t, family: f, protocol: protocol, mode: mode}
	s.setMode(mode)
	s.setMark(0)
	s.before = s.counters()
	s.hashed = legacyCount(t)
	t.Cleanup(s.end)
	return s
}

func (s *scene) setMode(mode loader.Mode) {
	s.Helper()
	require.NoError(s, datapath.SetMode(context.Background(), mode, true))
}

// setMark says up to when what sockets remember is doubtful: a test before this one has loaded.
func (s *scene) setMark(mark uint32) {
	s.Helper()
	var cfg sock.SockRevskConfigValue
	config := datapath.Map(sock.SockMapRevskConfig)
	require.NoError(s, config.Lookup(uint32(0), &cfg))
	cfg.Mark = mark
	require.NoError(s, config.Put(uint32(0), cfg))
}

func (s *scene) counters() loader.Counters {
	s.Helper()
	c, err := datapath.Counters()
	require.NoError(s, err)
	return c
}

func (s *scene) end() {
	for _, x := range s.sockets {
		x.close()
	}
	for _, svc := range s.services {
		s.deleteIfThere(svc)
	}
	if !s.Failed() && !s.Skipped() {
		s.balance()
	}
	if s.Failed() || s.Skipped() || s.mayLeak {
		// The next scene is to find the maps as this one has.
		for _, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
			clearMap(s.T, name)
		}
	}
}

// balance checks that of closed sockets nothing is left, and that all they ever held was counted.
func (s *scene) balance() {
	s.Helper()
	becomes(s, s.before.Live(), s.live, "stored is not released plus dropped")
	if !s.mayLeak {
		becomes(s, 0, s.hashEntries, "entries in the legacy maps")
	}
}

func (s *scene) live() int64      { s.Helper(); return s.counters().Live() }
func (s *scene) released() uint64 { s.Helper(); return s.counters().Released }
func (s *scene) zeroed() uint64   { s.Helper(); return s.counters().ReleaseZeroed }

// becomes checks what depends on sockets that were closed. They are released a moment later if another process, which iterates
// over all open files, is just looking at them.
func becomes[T comparable](t testing.TB, want T, get func() T, what string) {
	t.Helper()
	now := get()
	for start := time.Now(); now != want && time.Since(start) < patience; time.Sleep(tick) {
		now = get()
	}
	assert.Equal(t, want, now, what)
}

// legacyCount counts the entries of the legacy maps.
func legacyCount(t *testing.T) int {
	t.Helper()
	return entries(t, lbmap.ReverseSK4Map) + entries(t, lbmap.ReverseSK6Map)
}

// entries counts those of a hash.
func entries(t *testing.T, name string) int {
	t.Helper()
	n := 0
	m := datapath.Map(name)
	for key, err := m.NextKeyBytes(nil); ; key, err = m.NextKeyBytes(key) {
		require.NoError(t, err, name)
		if key == nil {
			return n
		}
		n++
	}
}

func clearMap(t *testing.T, name string) {
	t.Helper()
	m := datapath.Map(name)
	for {
		key, err := m.NextKeyBytes(nil)
		require.NoError(t, err, name)
		if key == nil {
			return
		}
		require.NoError(t, m.Delete(key), name)
	}
}

// socket opens one of the kind that the scene is about.
func (s *scene) socket() *socket {
	s.Helper()
	x, err := newSocket(s.family, s.protocol)
	require.NoError(s, err)
	x.T = s.T
	s.sockets = append(s.sockets, x)
	return x
}

func (s *scene) datagram() bool { return s.protocol != unix.IPPROTO_TCP }

func (s *scene) frontend(at netip.AddrPort) lbmap.Frontend {
	return lbmap.Frontend{AddrPort: at, Protocol: lbmap.Protocol(s.protocol)}
}

// service makes a new service with a backend of its own.
func (s *scene) service() *service {
	s.Helper()
	return s.serviceTo(s.backendAt(s.numbers))
}

// serviceTo makes a new service with this backend.
func (s *scene) serviceTo(backend netip.AddrPort) *service {
	s.Helper()
	return s.serviceAt(netip.AddrPortFrom(sandbox.Numbered(s.family.services, s.numbers), 53), backend)
}

// serviceWithout makes a new service without backends.
func (s *scene) serviceWithout() *service {
	s.Helper()
	return s.serviceTo(netip.AddrPort{})
}

func (s *scene) serviceAt(front, backend netip.AddrPort) *service {
	s.Helper()
	s.numbers++
	svc := &service{front: front, backend: backend, revNat: uint16(s.numbers), protocol: s.protocol}
	s.services = append(s.services, svc)
	s.publish(svc)
	return svc
}

// publish writes a service, new or changed.
func (s *scene) publish(svc *service) {
	s.Helper()
	var backends []lbmap.Backend
	if svc.backend.IsValid() {
		backends = []lbmap.Backend{{AddrPort: svc.backend, Protocol: lbmap.Protocol(svc.protocol)}}
	}
	_, err := services.Upsert(s.Context(), lbmap.Service{
		Frontend: svc.frontend(), RevNat: svc.revNat, Backends: backends,
	})
	require.NoError(s, err)
}

func (s *scene) delete(svc *service) {
	s.Helper()
	_, err := services.Delete(context.Background(), svc.frontend())
	require.NoError(s, err)
}

func (s *scene) deleteIfThere(svc *service) {
	_, err := services.Delete(context.Background(), svc.frontend())
	if err != nil {
		assert.ErrorIs(s, err, lbmap.ErrNotFound)
	}
}

// nowhere is an address of this host that belongs to no service; nobody listens there.
func (s *scene) nowhere() netip.AddrPort { return netip.AddrPortFrom(sandbox.Numbered(s.plain, 9), 9) }

// plainServer is a server that is no backend.
func (s *scene) plainServer() netip.AddrPort {
	return netip.AddrPortFrom(sandbox.Numbered(s.plain, 1), firstPort)
}

// unreachable is a backend to which the kernel has no route.
func (s *scene) unreachable() netip.AddrPort { return netip.AddrPortFrom(s.unroutable, 7) }

func (s *scene) question() string {
	s.asked++
	return fmt.Sprintf("question %d", s.asked)
}

// heard receives the answer to a question and checks that it is from the server and reported as from
// the address.
func (s *scene) heard(x *socket, question string, server, reported netip.AddrPort) {
	s.Helper()
	reply, from := x.receive()
	payload, at := split(reply)
	require.Equal(s, question, payload, "payload")
	same(s, server, at, "the server that answered")
	if s.datagram() {
		same(s, reported, from, "source of the answer")
	}
}

// asks sends to an address and checks who answers, and under which address.
func (s *scene) asks(x *socket, to, server, reported netip.AddrPort) {
	s.Helper()
	q := s.question()
	x.sendTo(to, q)
	s.heard(x, q, server, reported)
}

// asksService sends to a service and checks the answer.
func (s *scene) asksService(x *socket, svc *service) {
	s.Helper()
	s.asks(x, svc.front, svc.backend, svc.front)
}

// queue sends to an address, or to what the socket is connected to, and waits for the answer to be queued. heard then
// receives it.
func (s *scene) queue(x *socket, to netip.AddrPort) (question string) {
	s.Helper()
	q := s.question()
	if to.IsValid() {
		x.sendTo(to, q)
	} else {
		x.send(q)
	}
	x.readable()
	return q
}

// talks sends to what the socket is connected to, and checks who answers and under which address.
func (s *scene) talks(x *socket, server, reported netip.AddrPort) {
	s.Helper()
	q := s.question()
	x.send(q)
	s.heard(x, q, server, reported)
}

// connected checks that the application sees itself connected to the service, and is.
func (s *scene) connected(x *socket, svc *service) {
	s.Helper()
	same(s, svc.front, x.peername(), "getpeername")
	s.talks(x, svc.backend, svc.front)
}

// rejectedNoBackend checks the error of a call that was rejected for want of a backend.
func (s *scene) rejectedNoBackend(err error) {
	s.Helper()
	require.ErrorIs(s, err, rejection(s.T, unix.EHOSTUNREACH))
}

// ownAddress is an address of this host where a service and its backend can be one.
func (s *scene) ownAddress() netip.AddrPort {
	if s.unroutable.Is4() {
		return netip.AddrPortFrom(netip.MustParseAddr("10.97.0.1"), firstPort)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("fd00:97::1"), firstPort)
}
