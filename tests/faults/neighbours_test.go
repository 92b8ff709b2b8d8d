// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/revsk/revsk/lbmap"
)

// Two processes of nobody's do what they like, at random. What each gets is what it would get if it were alone: that
// is known from what was done with its own sockets. The library shrinks what fails to the shortest that does.
func TestNeighbours(t *testing.T) {
	n := newNode(t)
	n.clean()
	n.must("load")
	setUpLoadNetwork(t)
	startLoadServers(t)
	services, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer services.Close()
	publishLoad(t, services)

	until := time.Now().Add(*duration)
	require.NoError(t, flag.Set("rapid.checks", "1000000"))
	require.NoError(t, flag.Set("rapid.steps", "60"))
	require.NoError(t, flag.Set("rapid.seed", fmt.Sprint(*seed)))
	require.NoError(t, flag.Set("rapid.nofailfile", "true"))
	programs, deeds := 0, make(map[string]int)
	failed := false // what has failed is done again, until it is short
	rapid.Check(t, func(rt *rapid.T) {
		if time.Now().After(until) && !failed {
			return
		}
		programs++
		w := &world{node: n, processes: startNeighbours(rt), done: deeds}
		defer func() {
			failed = failed || rt.Failed()
			for _, p := range w.processes {
				p.end()
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"open":       w.open,
			"close":      w.close,
			"dup":        w.dup,
			"connect":    w.connect,
			"directly":   w.connectDirectly,
			"disconnect": w.disconnect,
			"ask":        w.ask,
			"setsockopt": w.setsockopt,
			"give":       w.give,
			"fork":       w.fork,
			"crowd":      w.crowd,
			"intrude":    w.intrude,
			"operate":    w.operate,
			"":           w.check,
		})
	})
	figure(t, "neighbours", "%s random programs of two unprivileged processes, with %s calls: %s. Each got what it would have got alone.",
		thousands(programs), thousands(sum(deeds)), describeCounts(deeds))
}

// world is what is known of the neighbours: the sockets, and who has them open.
type world struct {
	*node
	processes [neighbours]*neighbourProcess
	sockets   []*modelled
	slots     int
	done      map[string]int
}

// modelled is a socket, and what it is to show.
type modelled struct {
	domain, kind, protocol int
	mapped                 bool
	slots                  [neighbours]int // 0: the neighbour has it not open
	peer                   string          // "": not connected
	backend                int             // that it is connected to, or -1
	// deaf: without any hook, too, Linux 6.18 does not deliver answers to an IPv6 socket that has sent, connected and
	// disconnected.
	deaf bool
}

func (m *modelled) stream() bool { return m.kind == unix.SOCK_STREAM }
func (m *modelled) v6() bool     { return m.domain == unix.AF_INET6 && !m.mapped }

func (m *modelled) String() string {
	return fmt.Sprintf("socket %v of domain %d, kind %d, protocol %d", m.slots, m.domain, m.kind, m.protocol)
}

// tooLong is a delay that no call on the loopback has, on a machine that is busy.
const tooLong = 30 * time.Second

func (w *world) do(rt *rapid.T, who int, d deed) result {
	w.done[d.Do]++
	begin := time.Now()
	r := w.processes[who].do(rt, d)
	if took := time.Since(begin); took > tooLong {
		rt.Fatalf("%d: %+v took %v", who, d, took)
	}
	return r
}

// any draws a socket, and one who has it open.
func (w *world) any(rt *rapid.T, want func(*modelled) bool) (m *modelled, who int) {
	var fit []*modelled
	for _, m := range w.sockets {
		if want == nil || want(m) {
			fit = append(fit, m)
		}
	}
	if len(fit) == 0 {
		rt.Skip("no such socket")
	}
	m = rapid.SampledFrom(fit).Draw(rt, "socket")
	who = rapid.IntRange(0, neighbours-1).Draw(rt, "who")
	if m.slots[who] == 0 {
		who = 1 - who
	}
	return m, who
}

func (w *world) deed(m *modelled, who int, do string) deed {
	return deed{Do: do, Slot: m.slots[who], Domain: m.domain}
}

func ok(rt *rapid.T, r result, about ...any) {
	if r.Errno != 0 {
		rt.Fatalf("%v: %v", fmt.Sprint(about...), r.Errno)
	}
}

func (w *world) open(rt *rapid.T) {
	who := rapid.IntRange(0, neighbours-1).Draw(rt, "who")
	m := &modelled{domain: unix.AF_INET, kind: unix.SOCK_DGRAM, backend: -1}
	switch rapid.SampledFrom([]string{"UDP", "UDP", "TCP", "MPTCP"}).Draw(rt, "kind") {
	case "TCP":
		m.kind = unix.SOCK_STREAM
	case "MPTCP":
		m.kind, m.protocol = unix.SOCK_STREAM, protocolMPTCP
	}
	switch rapid.SampledFrom([]string{"IPv4", "IPv6", "v4-mapped"}).Draw(rt, "family") {
	case "IPv6":
		m.domain = unix.AF_INET6
	case "v4-mapped":
		m.domain, m.mapped = unix.AF_INET6, true
	}
	w.slots++
	m.slots[who] = w.slots
	d := w.deed(m, who, "open")
	d.Kind, d.Protocol = m.kind, m.protocol
	r := w.do(rt, who, d)
	if m.protocol == protocolMPTCP && (r.Errno == unix.EPROTONOSUPPORT || r.Errno == unix.ENOPROTOOPT) {
		rt.Skip("no MPTCP")
	}
	ok(rt, r, "open of ", m)
	w.sockets = append(w.sockets, m)
}

func (w *world) close(rt *rapid.T) {
	m, who := w.any(rt, nil)
	ok(rt, w.do(rt, who, w.deed(m, who, "close")), "close of ", m)
	m.slots[who] = 0
	if m.slots == [neighbours]int{} {
		w.sockets = slices.DeleteFunc(w.sockets, func(o *modelled) bool { return o == m })
	}
}

func (w *world) dup(rt *rapid.T) {
	m, who := w.any(rt, nil)
	ok(rt, w.do(rt, who, w.deed(m, who, "dup")), "dup of ", m)
}

func (w *world) connect(rt *rapid.T) {
	m, who := w.any(rt, nil)
	s := rapid.IntRange(0, loadServices-1).Draw(rt, "service")
	d := w.deed(m, who, "connect")
	d.To = loadService(m.v6(), s).String()
	w.connected(rt, m, w.do(rt, who, d), d.To, backendOf(s))
}

func (w *world) connectDirectly(rt *rapid.T) {
	m, who := w.any(rt, nil)
	b := rapid.IntRange(0, loadBackends-1).Draw(rt, "backend")
	d := w.deed(m, who, "connect")
	d.To = loadBackend(m.v6(), b).String()
	w.connected(rt, m, w.do(rt, who, d), d.To, b)
}

func (w *world) connected(rt *rapid.T, m *modelled, r result, peer string, backend int) {
	if m.stream() && m.peer != "" {
		if r.Errno != unix.EISCONN {
			rt.Fatalf("%v: connecting once more: %v", m, r.Errno)
		}
		return
	}
	ok(rt, r, m, ": connect to ", peer)
	m.peer, m.backend = peer, backend
}

func (w *world) disconnect(rt *rapid.T) {
	m, who := w.any(rt, func(m *modelled) bool { return !m.stream() })
	ok(rt, w.do(rt, who, w.deed(m, who, "disconnect")), "disconnect of ", m)
	m.peer, m.backend = "", -1
	m.deaf = m.domain == unix.AF_INET6
}

// ask asks a service: by a connection the one that it is to, by other sockets any, or a backend itself.
func (w *world) ask(rt *rapid.T) {
	m, who := w.any(rt, func(m *modelled) bool { return !m.stream() && !m.deaf || m.peer != "" })
	d := w.deed(m, who, "ask")
	d.Payload = fmt.Sprint(w.done["ask"])
	want := m.peer
	if m.peer == "" {
		if rapid.Bool().Draw(rt, "directly") {
			d.To = loadBackend(m.v6(), rapid.IntRange(0, loadBackends-1).Draw(rt, "backend")).String()
		} else {
			d.To = loadService(m.v6(), rapid.IntRange(0, loadServices-1).Draw(rt, "service")).String()
		}
		want = d.To
	}
	r := w.do(rt, who, d)
	ok(rt, r, m, " asks ", want)
	if r.Payload != d.Payload {
		rt.Fatalf("%v: %q answers %q", m, r.Payload, d.Payload)
	}
	if !m.stream() && r.Address != want {
		rt.Fatalf("%v: asked %s, the answer is from %s", m, want, r.Address)
	}
}

// setsockopt calls it as revsk migrate does, and in other ways.
func (w *world) setsockopt(rt *rapid.T) {
	m, who := w.any(rt, nil)
	d := w.deed(m, who, "setsockopt")
	d.Level = rapid.SampledFrom([]int{0x72657673, 0x7fff0000, unix.SOL_SOCKET}).Draw(rt, "level")
	d.Option = rapid.IntRange(0, 3).Draw(rt, "option")
	d.Size = rapid.SampledFrom([]int{0, 1, 4, 16, 24, 56, 184, 4096}).Draw(rt, "size")
	if d.Level == unix.SOL_SOCKET {
		d.Option = 255 // there is none
	}
	if r := w.do(rt, who, d); r.Errno == 0 || r.Errno == unix.EPERM {
		rt.Fatalf("%v: %+v: %v", m, d, r.Errno)
	}
}

// give passes a socket to the other process, which then has it, too.
func (w *world) give(rt *rapid.T) {
	m, who := w.any(rt, func(m *modelled) bool { return m.slots[0] == 0 || m.slots[1] == 0 })
	ok(rt, w.do(rt, who, w.deed(m, who, "give")), "giving ", m)
	if rapid.Bool().Draw(rt, "and close") {
		ok(rt, w.do(rt, who, w.deed(m, who, "close")), "close of ", m)
		m.slots[who] = 0
	}
	w.slots++
	m.slots[1-who] = w.slots
	ok(rt, w.do(rt, 1-who, w.deed(m, 1-who, "take")), "taking ", m)
}

func (w *world) fork(rt *rapid.T) {
	m, who := w.any(rt, nil)
	if !seldom(rt) {
		rt.Skip()
	}
	ok(rt, w.do(rt, who, w.deed(m, who, "fork")), "fork with ", m)
}

// crowd lets one take as much as it can. What it does not get is its own affair.
func (w *world) crowd(rt *rapid.T) {
	if !seldom(rt) {
		rt.Skip()
	}
	w.do(rt, rapid.IntRange(0, neighbours-1).Draw(rt, "who"), deed{Do: "crowd", Size: rapid.IntRange(1, 100).Draw(rt, "sockets")})
}

func (w *world) intrude(rt *rapid.T) {
	if !seldom(rt) {
		rt.Skip()
	}
	ok(rt, w.do(rt, rapid.IntRange(0, neighbours-1).Draw(rt, "who"), deed{Do: "intrude"}), "namespaces")
}

// operate is what the operator does meanwhile.
func (w *world) operate(rt *rapid.T) {
	if !seldom(rt) {
		rt.Skip()
	}
	line := rapid.SampledFrom([]string{"mode dual", "migrate", "migrate --to mirror", "list", "status"}).Draw(rt, "command")
	w.done["operate"]++
	if o := w.run(words(line)...); o.code != 0 {
		rt.Fatalf("%s: %v", line, o)
	}
}

// seldom is for what takes long.
func seldom(rt *rapid.T) bool { return rapid.IntRange(0, 9).Draw(rt, "seldom") == 9 }

// check asks every socket whom it is connected to.
func (w *world) check(rt *rapid.T) {
	for _, m := range w.sockets {
		for who, slot := range m.slots {
			if slot == 0 || m.protocol == protocolMPTCP {
				continue // docs/differences.md: MPTCP shows the backend
			}
			r := w.do(rt, who, w.deed(m, who, "peer"))
			if m.peer == "" && r.Errno == unix.ENOTCONN {
				continue
			}
			if r.Errno != 0 || r.Address != m.peer {
				rt.Fatalf("%v shows %s to %d, not %s (%v)", m, r.Address, who, m.peer, r.Errno)
			}
		}
	}
}
