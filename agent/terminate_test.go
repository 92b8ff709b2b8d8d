// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/lockedsocket"
	"github.com/revsk/revsk/lbmap"
)

// A backend goes: the sockets that are connected to it through the service end soon, and nobody else notices.
func TestSocketsOfABackendThatGoesEnd(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.Poll, opts.SurveyEvery = 0, time.Minute // the defaults
	r := n.start(opts)
	r.ready()
	stays, goes := n.backend("127.0.0.1"), n.backend("127.0.0.2")
	other := service(9, lbmap.ProtocolUDP, stays)
	udp := service(1, lbmap.ProtocolUDP, stays, goes)
	tcp := service(2, lbmap.ProtocolTCP, goes)
	n.services(other, udp, tcp)

	var onGone, bystanders []*client
	direct := &client{n.dial("udp", goes), goes}
	for len(onGone) < 5 || len(bystanders) < 5 {
		c := n.client(udp.Frontend)
		if n.backendOf(c) == goes {
			onGone = append(onGone, c)
		} else {
			bystanders = append(bystanders, c)
		}
	}
	bystanders = append(bystanders, n.client(other.Frontend), direct, n.client(tcp.Frontend))
	local := make(map[*client]string)
	for _, c := range bystanders {
		require.NoError(t, c.asks())
		local[c] = c.LocalAddr().String()
	}
	settled(r)

	n.services(other, service(1, lbmap.ProtocolUDP, stays), service(2, lbmap.ProtocolTCP, goes))
	took := awaits(t, "ended", soon, func() bool {
		for _, c := range onGone {
			if !c.isEnded() {
				return false
			}
		}
		return true
	})
	t.Logf("%d sockets ended %v after their backend went", len(onGone), took)
	awaits(t, "told", soon, func() bool { return len(eventsOf[SocketTerminated](r)) == len(onGone) })
	for _, c := range bystanders {
		require.NoError(t, c.asks())
		require.Equal(t, local[c], c.LocalAddr().String())
	}
	for _, e := range eventsOf[SocketTerminated](r) {
		require.Equal(t, inspect.OutcomeDestroyed, e.Outcome)
		require.Equal(t, goes, e.Connection.Peer)
		require.Equal(t, udp.Frontend.AddrPort, e.Connection.Service)
		require.NotEmpty(t, e.Socket.Owners)
	}
	// Streams end when that is asked for; the ones of before are found by the next survey.
	opts.Termination.Protocols, opts.SurveyEvery = TerminateAll, time.Second
	r.configure(opts)
	n.services(other, service(1, lbmap.ProtocolUDP, stays), lbmap.Service{Frontend: tcp.Frontend})
	awaits(t, "the stream ends", soon, func() bool { return len(eventsOf[SocketTerminated](r)) > len(onGone) })
	require.NoError(t, bystanders[len(bystanders)-2].asks())
}

// A socket that its process keeps locked is left alone, and nobody waits with it. It ends soon after it is not locked any more.
func TestALockedSocketIsEndedAfterwards(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	opts.Termination.Protocols, opts.SurveyEvery = TerminateAll, time.Hour
	r := n.start(opts)
	r.ready()
	stays, goes := n.backend("127.0.0.1"), n.backend("127.0.0.2")
	other, udp, tcp := service(9, lbmap.ProtocolUDP, stays), service(1, lbmap.ProtocolUDP, goes), service(2, lbmap.ProtocolTCP, goes)
	n.services(other, udp, tcp)
	waits, locked := n.client(udp.Frontend), n.client(tcp.Frontend)
	raw, err := locked.Conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var fd int
	require.NoError(t, raw.Control(func(s uintptr) { fd = int(s) }))
	release := lockedsocket.Lock(t, fd)
	settled(r)

	n.services(other)
	took := awaits(t, "the other one ends", soon, waits.isEnded)
	t.Logf("another socket ended %v after its backend went", took)
	// Even to ask what it is connected to would wait.
	awaits(t, "the locked one is told of", soon, func() bool {
		return slices.ContainsFunc(eventsOf[SocketTerminated](r), func(e SocketTerminated) bool {
			return e.Outcome == inspect.OutcomeFailed && errors.Is(e.Err, inspect.ErrLocked)
		})
	})
	release()
	took = awaits(t, "the locked one ends", time.Minute, locked.isEnded)
	t.Logf("the socket ended %v after it was unlocked", took)
}

// A backend that was gone before the agent was started, and one with a state that counts as gone.
func TestWhatHappenedWhileNoAgentRan(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	first := n.start(opts)
	first.ready()
	stays, goes := n.backend("127.0.0.1"), n.backend("127.0.0.2")
	a, b, c := service(1, lbmap.ProtocolUDP, goes), service(2, lbmap.ProtocolUDP, stays), service(3, lbmap.ProtocolUDP, n.backend("127.0.0.3"))
	n.services(a, b, c)
	onGone, bystander, onQuarantined := n.client(a.Frontend), n.client(b.Frontend), n.client(c.Frontend)
	require.NoError(t, first.stop())
	a.Backends = nil
	c.Backends[0].State = lbmap.BackendQuarantined
	n.services(a, b, c)
	opts.Termination.States = []lbmap.BackendState{lbmap.BackendQuarantined}
	opts.Termination.MaxShare = 0.9
	n.start(opts)
	awaits(t, "ended", soon, func() bool { return onGone.isEnded() && onQuarantined.isEnded() })
	require.NoError(t, bystander.asks())
}

// A control plane rewrites its maps. Nothing ends that lives on.
func TestMapsThatAreRewritten(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	r := n.start(opts)
	r.ready()
	var all []lbmap.Service
	var clients []*client
	for i := range 12 {
		all = append(all, service(i, lbmap.ProtocolUDP, n.backend(fmt.Sprintf("127.0.1.%d", i+1))))
	}
	n.services(all...)
	for _, s := range all {
		clients = append(clients, n.client(s.Frontend))
	}
	settled(r)
	alive := func(what string) {
		t.Helper()
		for _, c := range clients {
			require.NoError(t, c.asks(), what)
		}
		require.Empty(t, eventsOf[SocketTerminated](r), what)
	}
	// At once, however long the writer takes on a machine that is busy: what has left is judged when f has returned.
	atOnce := func(f func()) {
		t.Helper()
		patient := opts
		patient.Termination.Grace = 5 * time.Minute
		r.configure(patient)
		f()
		r.configure(opts)
	}

	atOnce(func() { n.services() })
	awaits(t, "held", soon, func() bool { return len(eventsOf[TerminationHeld](r)) > 0 })
	require.Equal(t, heldEmpty, eventsOf[TerminationHeld](r)[0].Why)
	time.Sleep(5 * time.Second)
	n.services(all...)
	time.Sleep(time.Second)
	alive("maps that were empty for 5 s")

	for i := range all {
		all[i].Backends[0].ID = uint32(1000 + i)
	}
	atOnce(func() {
		n.services()
		n.services(all...)
	})
	time.Sleep(time.Second)
	alive("every backend has another id")

	atOnce(func() { n.services(all[:6]...) })
	awaits(t, "held", soon, func() bool {
		held := eventsOf[TerminationHeld](r)
		return held[len(held)-1].Why == heldMany
	})
	time.Sleep(5 * time.Second)
	n.services(all...)
	awaits(t, "held no longer", soon, func() bool { return r.heldFor() == "" })
	time.Sleep(time.Second)
	alive("half of the services were gone for 5 s")

	// One by one, faster than one could have been judged by itself.
	atOnce(func() {
		for i := 11; i >= 6; i-- {
			n.services(all[:i]...)
			time.Sleep(100 * time.Millisecond)
		}
	})
	time.Sleep(2 * time.Second)
	n.services(all...)
	time.Sleep(time.Second)
	alive("half of the services went one by one, and came back")

	// And what goes for good ends, though it is a lot.
	opts.Termination.Hold = time.Second
	r.configure(opts)
	n.services(all[:6]...)
	awaits(t, "ended", soon, func() bool { return len(eventsOf[SocketTerminated](r)) == 6 })
	for _, c := range clients[:6] {
		require.NoError(t, c.asks())
	}
}

// heldFor is why sockets are not ended, as metrics have it.
func (r *running) heldFor() string {
	r.Agent.mu.Lock()
	defer r.Agent.mu.Unlock()
	return r.view.backends.held
}

// States that count as gone from now on count for the backends that have them already.
func TestOtherStatesCountAtOnce(t *testing.T) {
	n := newNode(t)
	opts := n.options()
	r := n.start(opts)
	r.ready()
	a, b := service(1, lbmap.ProtocolUDP, n.backend("127.0.0.1")), service(2, lbmap.ProtocolUDP, n.backend("127.0.0.2"))
	n.services(a, b)
	c := n.client(a.Frontend)
	a.Backends[0].State = lbmap.BackendQuarantined
	n.services(a, b)
	settled(r)
	opts.Termination.States = []lbmap.BackendState{lbmap.BackendQuarantined}
	r.configure(opts)
	awaits(t, "ended", soon, c.isEnded)
}

// settled waits until the agent has seen the backends and trusts them.
func settled(r *running) {
	r.n.Helper()
	time.Sleep(time.Second)
	awaits(r.n, "backends are known", soon, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		return len(r.view.backends.present) > 0
	})
}

// What decides, without a kernel. Names of backends are ADDR:PORT/PROTO.
func TestWhatMayBeEnded(t *testing.T) {
	opts, err := Options{}.WithDefaults()
	require.NoError(t, err)
	o := opts.Termination
	long := time.Hour
	for _, test := range []struct {
		name    string
		present []string
		recent  []string
		quiet   time.Duration
		since   time.Duration // since a start; 0: it has settled
		why     string
	}{
		{"one of two", []string{"10.0.0.1:53/udp"}, []string{"10.0.0.2:53/udp"}, time.Second, 0, ""},
		{"the last one", nil, []string{"10.0.0.2:53/udp"}, long, 0, heldEmpty},
		{"a pod with several ports", []string{"10.0.0.1:53/udp"}, []string{"10.0.0.2:53/udp", "10.0.0.2:53/tcp", "10.0.0.2:80/tcp"}, time.Second, 0, ""},
		{"several ports of an address that stays", []string{"10.0.0.2:1/udp"}, []string{"10.0.0.2:53/udp", "10.0.0.2:54/udp"}, time.Second, 0, heldMany},
		{"two of three", []string{"10.0.0.1:53/udp"}, []string{"10.0.0.2:53/udp", "10.0.0.3:53/udp"}, time.Second, 0, heldMany},
		{"two of three, for good", []string{"10.0.0.1:53/udp"}, []string{"10.0.0.2:53/udp", "10.0.0.3:53/udp"}, o.Hold, 0, ""},
		{"two of eight", many(6), []string{"10.0.0.2:53/udp", "10.0.0.3:53/udp"}, time.Second, 0, ""},
		{"just started", many(6), []string{"10.0.0.2:53/udp"}, time.Second, time.Second, heldSettling},
		{"just started, and at rest for long before", many(6), []string{"10.0.0.2:53/udp"}, long, time.Second, heldSettling},
		{"started, and at rest", many(6), []string{"10.0.0.2:53/udp"}, o.Settle, o.Settle, ""},
		{"started, and never at rest", many(6), []string{"10.0.0.2:53/udp"}, time.Second, patiently * o.Settle, ""},
	} {
		now := time.Now()
		tm := terminator{present: make(backendSet), recent: make(map[inspect.Backend]time.Time), changed: now.Add(-test.quiet)}
		if test.since > 0 {
			tm.settling = now.Add(-test.since)
		}
		for _, s := range test.present {
			tm.present[backendNamed(t, s)] = true
		}
		for _, s := range test.recent {
			tm.recent[backendNamed(t, s)] = now.Add(-test.quiet)
		}
		require.Equal(t, test.why, tm.mayNot(o, now), test.name)
	}
}

func many(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("10.0.1.%d:53/udp", i+1))
	}
	return all
}

func backendNamed(t *testing.T, s string) inspect.Backend {
	f, err := lbmap.ParseFrontend(s)
	require.NoError(t, err)
	return inspect.Backend{AddrPort: f.AddrPort, Protocol: f.Protocol}
}

// What seems to be gone at once is held back until the maps are at rest, or where they never are, for ten times as long. Then what
// goes next is judged by itself.
func TestMapsThatNeverRest(t *testing.T) {
	opts, err := Options{}.WithDefaults()
	require.NoError(t, err)
	o := opts.Termination
	now := time.Now()
	tm := terminator{present: make(backendSet), recent: make(map[inspect.Backend]time.Time)}
	lose := func(names ...string) {
		for _, s := range names {
			tm.recent[backendNamed(t, s)] = now
		}
	}
	for _, s := range many(4) {
		tm.present[backendNamed(t, s)] = true
	}
	lose("10.0.0.1:53/udp", "10.0.0.2:53/udp")
	begin := now
	for ; now.Sub(begin) < patiently*o.Hold; now = now.Add(time.Second) {
		tm.changed = now.Add(-time.Second)
		require.Equal(t, heldMany, tm.mayNot(o, now))
	}
	tm.changed = now
	require.Empty(t, tm.mayNot(o, now))
	require.Empty(t, tm.mayNot(o, now))
	lose("10.0.0.3:53/udp")
	require.Empty(t, tm.mayNot(o, now), "one of five")
	lose("10.0.0.4:53/udp", "10.0.0.5:53/udp")
	require.Equal(t, heldMany, tm.mayNot(o, now), "three of seven")
	// While there are none at all no time passes.
	all := tm.present
	tm.present = nil
	now = now.Add(patiently * o.Hold)
	require.Equal(t, heldEmpty, tm.mayNot(o, now))
	tm.present, tm.changed = all, now
	require.Equal(t, heldMany, tm.mayNot(o, now))
}

// The grace period, which begins anew when others go, but not for ever.
func TestGrace(t *testing.T) {
	o := Termination{Grace: time.Second}
	b := inspect.Backend{AddrPort: netip.MustParseAddrPort("10.0.0.1:53"), Protocol: lbmap.ProtocolUDP}
	now := time.Now()
	for _, test := range []struct {
		gone, lost time.Duration
		due        bool
	}{
		{500 * time.Millisecond, 500 * time.Millisecond, false},
		{time.Second, time.Second, true},
		{2 * time.Second, 500 * time.Millisecond, false},
		{10 * time.Second, 500 * time.Millisecond, true},
	} {
		tm := terminator{gone: map[inspect.Backend]time.Time{b: now.Add(-test.gone)}, lost: now.Add(-test.lost)}
		require.Len(t, tm.due(o, now), map[bool]int{true: 1}[test.due], "%+v", test)
	}
}

// A backend of any protocol is gone for a protocol if nothing else has its address for that protocol.
func TestBackendsByProtocol(t *testing.T) {
	now := time.Now()
	tm := &terminator{gone: make(map[inspect.Backend]time.Time), recent: make(map[inspect.Backend]time.Time)}
	set := func(names ...string) {
		s := make(backendSet)
		for _, name := range names {
			s[backendNamed(t, name)] = true
		}
		tm.compare(s, now)
	}
	set("10.0.0.1:53/any", "10.0.0.2:53/udp", "10.0.0.2:53/tcp")
	set("10.0.0.1:53/udp", "10.0.0.1:53/tcp", "10.0.0.2:53/any")
	require.NotContains(t, tm.gone, backendNamed(t, "10.0.0.2:53/udp"))
	require.Contains(t, tm.gone, backendNamed(t, "10.0.0.1:53/any"))
	require.True(t, tm.present.has(backendNamed(t, "10.0.0.1:53/udp")))
	require.Equal(t, []lbmap.Protocol{lbmap.ProtocolUDP}, endable(lbmap.ProtocolAny, TerminateUDP))
	require.Empty(t, endable(lbmap.ProtocolTCP, TerminateUDP))
	require.Equal(t, []lbmap.Protocol{lbmap.ProtocolUDP, lbmap.ProtocolTCP}, endable(lbmap.ProtocolAny, TerminateAll))
}
