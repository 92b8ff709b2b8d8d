// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
)

// model is what the rules say of one datagram socket, in Go.
type model struct {
	w            *world
	conn, former *tuple
	slots        [slots]tuple
	table        []tuple
	// What the legacy maps hold of the socket, in mode dual.
	hash map[netip.AddrPort]tuple
}

// world is what the sockets of a model share.
type world struct {
	dual   bool
	now    uint32
	counts counts
	alive  map[netip.AddrPort]uint16 // index of each service that has backends
}

func (w *world) current(t tuple) bool {
	index, ok := w.alive[t.service]
	return ok && index == t.revNat
}

// expected tells whether an answer to what was sent can still be expected.
func (w *world) expected(t tuple) bool { return w.now-t.time <= answerTime }

func sameService(a, b tuple) bool {
	return a.service == b.service && a.revNat == b.revNat && a.backendID == b.backendID
}

// find returns the tuple for a peer, in a slot or in the table.
func (m *model) find(peer netip.AddrPort) *tuple {
	for i := range m.slots {
		if m.slots[i].peer == peer {
			return &m.slots[i]
		}
	}
	if i := m.inTable(peer); i >= 0 {
		return &m.table[i]
	}
	return nil
}

func (m *model) inTable(peer netip.AddrPort) int {
	return slices.IndexFunc(m.table, func(t tuple) bool { return t.peer == peer })
}

func (m *model) add(t tuple) {
	if i := slices.Index(m.slots[:], tuple{}); i >= 0 {
		m.slots[i] = t
		return
	}
	m.table = append(m.table, t)
}

func (m *model) drop(peer netip.AddrPort, why harnessRevskMetric) {
	slot := slices.IndexFunc(m.slots[:], func(t tuple) bool { return t.peer == peer })
	switch i := m.inTable(peer); {
	case slot >= 0:
		m.slots[slot] = tuple{}
	case i >= 0:
		m.table = slices.Delete(m.table, i, i+1)
	default:
		return
	}
	m.w.counts[why]++
}

func (m *model) dropConn(peer netip.AddrPort, why harnessRevskMetric) {
	if m.conn != nil && m.conn.peer == peer {
		m.conn = nil
		m.w.counts[why]++
	}
}

func (m *model) dropFormer(peer netip.AddrPort, why harnessRevskMetric) {
	if m.former != nil && m.former.peer == peer {
		m.former = nil
		m.w.counts[why]++
	}
}

func (m *model) forget(peer netip.AddrPort) { delete(m.hash, peer) }

func (m *model) remember(t tuple) {
	if m.w.dual {
		m.hash[t.peer] = t
	}
}

func (m *model) connect(t tuple) unix.Errno {
	c := m.w.counts
	new := t
	switch {
	case m.conn == nil:
		c[stored]++
		m.conn = &new
	case m.conn.peer == t.peer:
		if !sameService(*m.conn, t) {
			c[updated]++
			m.conn = &new
		}
	default:
		if old := m.former; old != nil {
			sent := m.find(old.peer)
			switch {
			case old.peer == t.peer:
				c[droppedReplaced]++
			case sent != nil:
				*sent = sent.overtaken()
				c[droppedReplaced]++
			default:
				m.add(old.overtaken())
			}
		}
		former := m.conn.at(t.time)
		m.former = &former
		c[stored]++
		m.conn = &new
	}
	m.dropFormer(t.peer, droppedReplaced)
	m.drop(t.peer, droppedReplaced)
	m.remember(t)
	return 0
}

// direct is a connect or a send that was not translated.
func (m *model) direct(a netip.AddrPort) {
	m.forget(a)
	m.dropConn(a, droppedDirect)
	m.dropFormer(a, droppedDirect)
	m.drop(a, droppedDirect)
}

func (m *model) send(t tuple) unix.Errno {
	old := m.find(t.peer)
	switch {
	case old == nil:
		m.add(t)
		m.w.counts[stored]++
	case !sameService(*old, t):
		flags := old.flags
		*old = t
		old.flags |= flags
		m.w.counts[updated]++
	default:
		old.time = t.time
	}
	m.remember(t)
	return 0
}

// source is what recvmsg reports of a datagram.
func (m *model) source(a netip.AddrPort) netip.AddrPort {
	if t := m.find(a); t != nil && (m.w.expected(*t) || m.w.current(*t)) {
		return t.service
	}
	if m.conn != nil && m.conn.peer == a {
		return m.conn.service
	}
	if m.former != nil && m.former.peer == a && (m.w.expected(*m.former) || m.w.current(*m.former)) {
		return m.former.service
	}
	return m.fromHash(a)
}

func (m *model) peername(a netip.AddrPort) netip.AddrPort {
	for _, t := range []*tuple{m.conn, m.former} {
		if t != nil && t.peer == a {
			return t.service
		}
	}
	if t := m.find(a); t != nil {
		if *t == t.overtaken() {
			return t.service
		}
		return a
	}
	return m.fromHash(a)
}

func (m *model) fromHash(a netip.AddrPort) netip.AddrPort {
	if t, ok := m.hash[a]; ok && m.w.current(t) {
		return t.service
	}
	return a
}

func (m *model) release() {
	m.w.counts[released] += m.state().tuples()
	*m = model{w: m.w, hash: make(map[netip.AddrPort]tuple)}
}

func (m *model) state() state {
	st := state{conn: m.conn, former: m.former, slots: m.slots}
	if len(m.table) > 0 {
		st.table = slices.SortedFunc(slices.Values(m.table), byPeer)
	}
	return st
}

var (
	randomCalls = flag.Int("random.calls", 10_000, "how many random calls there are of each kind of socket")
	randomSeed  = flag.Uint64("random.seed", 20240607, "which calls")
)

// In a long random sequence of calls on several sockets each call is answered as
// the model says, and leaves the socket and the counters with what the model says:
// every tuple in its place.
func TestRandomSequence(t *testing.T) {
	calls, seed := *randomCalls, *randomSeed
	const (
		sockets  = 4
		peers    = 120
		services = 12
		// A wrong state stays: it need not be looked for after every call.
		lookEvery  = 4
		countEvery = 200
	)
	for _, v := range []struct {
		name   string
		family family
		mode   mode
	}{
		{"storage IPv4", ipv4, storage},
		{"storage IPv6", ipv6, storage},
		{"storage v4-mapped", v4mapped, storage},
		{"dual IPv6", ipv6, dual},
	} {
		t.Run(v.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			s := newScene(t, load(t, options{}), v.family, false)
			s.setMode(v.mode)
			w := &world{
				dual:   v.mode == dual,
				counts: make(counts), alive: make(map[netip.AddrPort]uint16),
			}
			live := make([]*subject, sockets)
			models := make([]*model, sockets)
			for i := range live {
				live[i] = s.subject
				if i > 0 {
					live[i] = s.another()
				}
				models[i] = &model{w: w, hash: make(map[netip.AddrPort]tuple)}
			}
			for n := range services {
				s.serve(n)
				w.alive[v.family.service(n)] = uint16(n)
			}
			for call := range calls {
				i := random.IntN(sockets)
				x, m := live[i], models[i]
				peer := random.IntN(peers)
				a := v.family.backend(peer)
				service := random.IntN(services)
				s.now = firstTime + uint32(call)
				w.now = s.now
				sent := s.tuple(service, peer)
				sent.revNat = w.alive[sent.service]
				var what string
				var got, want any
				switch p := random.IntN(1000); {
				case p < 470:
					what = fmt.Sprintf("send to %v", sent)
					got, want = x.trySend(sent), m.send(sent)
				case p < 580:
					what = fmt.Sprintf("connect to %v", sent)
					got, want = x.tryConnect(sent), m.connect(sent)
				case p < 620:
					what = fmt.Sprintf("connect to %v", a)
					x.connectDirect(a)
					m.direct(a)
				case p < 740:
					what = fmt.Sprintf("send to %v", a)
					x.sendDirect(a)
					m.direct(a)
				case p < 880:
					what = fmt.Sprintf("source %v", a)
					got, want = x.source(a), m.source(a)
				case p < 960:
					if m.conn != nil && random.IntN(2) == 0 {
						a = m.conn.peer
					}
					what = fmt.Sprintf("peername %v", a)
					got, want = x.peername(a), m.peername(a)
				case p < 998:
					what = fmt.Sprintf("change of service %d", service)
					w.change(s, service, random)
				default:
					what = "release"
					x.release()
					x.socket.close()
					m.release()
					live[i] = s.another()
					x = live[i]
				}
				if got != want {
					t.Fatalf("seed %d, call %d, socket %d, %s: %v, want %v", seed, call, i, what, got, want)
				}
				if call%lookEvery == 0 {
					st := x.state()
					st.hasPeers, st.class, st.maps, st.places = false, 0, 0, nil
					if model := m.state(); !reflect.DeepEqual(st, model) {
						t.Fatalf("seed %d, call %d, socket %d, %s: the socket holds\n%v\nwant\n%v",
							seed, call, i, what, st, model)
					}
				}
				if call%countEvery == 0 || call == calls-1 {
					s.counted(maps.Clone(w.counts).withoutZeros())
					s.balance()
					s.wantHashes(live, models)
				}
				if t.Failed() {
					t.Fatalf("seed %d, call %d, socket %d, %s", seed, call, i, what)
				}
			}
			t.Logf("%d calls, %v", calls, w.counts)
		})
	}
}

// change makes a service come, go, or get another index.
func (w *world) change(s *scene, n int, random *rand.Rand) {
	service := s.family.service(n)
	index := uint16(n + 100*random.IntN(2))
	delete(w.alive, service)
	switch random.IntN(4) {
	case 0:
		s.putService(n, lbmap.ServiceValue{RevNat: index})
	case 1:
		s.putService(n, lbmap.ServiceValue{})
		s.deleteService(n)
	default:
		s.putService(n, lbmap.ServiceValue{Count: 1, RevNat: index})
		w.alive[service] = index
	}
}

// wantHashes compares the legacy maps with what all models say.
func (s *scene) wantHashes(live []*subject, models []*model) {
	s.Helper()
	want := make(map[hashEntry]bool)
	for i, m := range models {
		for _, t := range m.hash {
			want[live[i].hashEntry(t)] = true
		}
	}
	got := make(map[hashEntry]bool)
	for _, e := range s.hash() {
		got[e] = true
	}
	if !maps.Equal(got, want) {
		s.Errorf("the legacy maps hold %q, want %q", slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
	}
}
