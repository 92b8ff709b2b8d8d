// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/loader"
)

const (
	stressThreads  = 16
	stressSockets  = 32
	stressServices = 1000
	stressTwins    = 20 // services of the same backends as the first ones
)

// stressReach is how many services a socket may use: from one to all.
var stressReach = []int{1, 4, 5, 64, stressServices}

// Threads do with sockets whatever comes: connect, reconnect, disconnect, send, send directly,
// receive, ask for the peer, abort, close. Every answer names the service that was asked, and must be
// reported as that, or as another of the same backend that the socket has used; a backend's own
// address may be seen only by a socket that has used it.
func TestStress(t *testing.T) {
	for _, mode := range []loader.Mode{loader.ModeStorage, loader.ModeDual} {
		t.Run(mode.String(), func(t *testing.T) { stress(t, mode, *stressDuration/2) })
	}
}

// stressMemory is what the kernel's memory may differ by: per-CPU caches, and pages of slab that are not full.
const stressMemory = 8 << 20

func stress(t *testing.T, mode loader.Mode, d time.Duration) {
	scenes := []*scene{newScene(t, mode, ipv4, unix.IPPROTO_UDP)}
	if haveIPv6 {
		scenes = append(scenes, newScene(t, mode, ipv6, unix.IPPROTO_UDP))
		scenes[1].numbers = 10000 // an index belongs to one service
	}
	plazas := make([]*plaza, len(scenes))
	for i, s := range scenes {
		plazas[i] = newPlaza(s)
	}
	places := make([]*place, stressSockets)
	for i := range places {
		p := plazas[i%len(plazas)]
		f := p.family
		if f.domain == unix.AF_INET && haveIPv6 && i%4 == 0 {
			f = v4mapped
		}
		places[i] = &place{plaza: p, family: f, reach: min(stressReach[i/2%len(stressReach)], len(p.all))}
	}
	memory, err := sandbox.AtRest(sandbox.KernelMemory)
	assert.NoError(t, err)

	var counts stressCounts
	err = inThreads(d, stressThreads, func(int) error {
		return places[rand.IntN(len(places))].act(&counts)
	})
	most := 0
	for _, p := range places {
		if p.x != nil {
			p.x.T = t
			most = max(most, p.x.tuples())
		}
		p.close()
	}
	assert.NoError(t, err)
	t.Logf("in the end a socket had %d tuples", most)
	var now int
	assert.Eventually(t, func() bool {
		now, err = sandbox.KernelMemory()
		return err == nil && now <= memory+stressMemory
	}, patience, 100*tick, "%d bytes of the kernel's memory before", memory)
	t.Logf("%d bytes of the kernel's memory before, %d after", memory, now)
	t.Logf("%v: %s", mode, counts.String())
	for i, deed := range deeds {
		if deed.name == "abort" && !haveDestroy(t) {
			t.Log("this kernel cannot abort sockets")
			continue
		}
		assert.NotZero(t, counts.done[i].Load(), deed.name)
	}
	assert.NotZero(t, counts.answers.Load())
	// The scenes balance the books.
}

// plaza is where sockets of one family meet services.
type plaza struct {
	*scene
	all       []*service
	byFront   map[netip.AddrPort]int
	byBackend map[netip.AddrPort][]int
}

func newPlaza(s *scene) *plaza {
	p := &plaza{scene: s}
	far := &service{front: s.nowhere(), backend: s.unreachable(), revNat: uint16(s.numbers + 6000)}
	s.publish(far)
	s.Cleanup(func() { s.delete(far) })
	// What is special comes first, where most sockets see it.
	for i, svc := range s.publishMany(scaled(stressServices - stressTwins)) {
		p.all = append(p.all, svc)
		if i >= stressTwins {
			continue
		}
		twin := &service{
			front:   netip.AddrPortFrom(sandbox.Numbered(s.family.services, 5000+i), 53),
			backend: svc.backend,
			revNat:  uint16(s.numbers + 5000 + i),
		}
		s.publish(twin)
		s.Cleanup(func() { s.delete(twin) })
		p.all = append(p.all, twin)
		if i == 0 {
			p.all = append(p.all, far)
		}
	}

	p.byFront = make(map[netip.AddrPort]int)
	p.byBackend = make(map[netip.AddrPort][]int)
	for i, svc := range p.all {
		p.byFront[svc.front] = i
		p.byBackend[svc.backend] = append(p.byBackend[svc.backend], i)
	}
	return p
}

// place is where there is a socket, one after the other.
type place struct {
	*plaza
	family family
	reach  int // so many of the services it uses

	mu   sync.RWMutex // held for writing while the socket is opened or closed
	x    *socket
	id   int64           // of the socket, among all that there were
	used []atomic.Uint32 // by service
}

var socketIDs atomic.Int64

// What a socket has done with a service. Never taken back: an answer may be late.
const (
	usedService = 1 << iota
	usedBackend // directly
)

// deeds are what threads do, and how often in 100.
var deeds = []struct {
	name string
	odds int
}{
	{"connect", 6}, {"connect directly", 1}, {"disconnect", 6},
	{"send", 33}, {"send connected", 8}, {"send directly", 2},
	{"receive", 35}, {"getpeername", 7}, {"abort", 1}, {"close", 1},
}

type stressCounts struct {
	done      [10]atomic.Int64 // by deed
	answers   atomic.Int64
	direct    atomic.Int64 // reported under a backend's own address
	strangers atomic.Int64 // for another socket
}

func (c *stressCounts) String() string {
	var b strings.Builder
	for i, deed := range deeds {
		fmt.Fprintf(&b, "%d %s, ", c.done[i].Load(), deed.name)
	}
	fmt.Fprintf(&b, "%d answers, of these %d from a backend and %d for another socket",
		c.answers.Load(), c.direct.Load(), c.strangers.Load())
	return b.String()
}

// act does one thing.
func (p *place) act(counts *stressCounts) error {
	n := rand.IntN(100)
	i := 0
	for n >= deeds[i].odds {
		n -= deeds[i].odds
		i++
	}
	deed := deeds[i].name
	// A socket with many services needs time to use them.
	if deed == "close" && rand.IntN(1+p.reach/8) == 0 {
		p.close()
	}
	if err := p.open(); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.x == nil {
		return nil // closed in between
	}
	err := p.do(deed, counts)
	if err != nil && !expected(err) {
		return fmt.Errorf("%s %s: %w", p.family.name, deed, err)
	}
	counts.done[i].Add(1)
	return nil
}

func (p *place) open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.x != nil {
		return nil
	}
	x, err := newSocket(p.family, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	p.x = x
	p.id = socketIDs.Add(1)
	p.used = make([]atomic.Uint32, len(p.all))
	return nil
}

func (p *place) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.x != nil {
		p.x.close()
		p.x = nil
	}
}

func (p *place) do(deed string, counts *stressCounts) error {
	i := rand.IntN(p.reach)
	svc := p.all[i]
	switch deed {
	case "connect":
		p.used[i].Or(usedService)
		return p.x.tryConnect(svc.front)
	case "connect directly":
		p.useDirectly(svc.backend)
		return p.x.tryConnect(svc.backend)
	case "disconnect":
		return p.x.tryDisconnect()
	case "send":
		p.used[i].Or(usedService)
		return p.x.trySendTo(svc.front, fmt.Sprintf("%d %d", p.id, i))
	case "send connected":
		return p.x.trySend(connectedPayload)
	case "send directly":
		p.useDirectly(svc.backend)
		return p.x.trySendTo(svc.backend, fmt.Sprintf("%d %d", p.id, i))
	case "receive":
		return p.receive(counts)
	case "getpeername":
		peer, err := p.x.tryPeername()
		if err != nil {
			return err
		}
		return p.mayShow(peer)
	case "abort":
		return p.abort()
	}
	return nil
}

func (p *place) useDirectly(backend netip.AddrPort) {
	for _, i := range p.byBackend[backend] {
		p.used[i].Or(usedBackend)
	}
}

func (p *place) receive(counts *stressCounts) error {
	reply, from, err := p.x.tryReceive(unix.MSG_DONTWAIT)
	if errors.Is(err, errForeign) {
		counts.strangers.Add(1)
		return nil
	} else if err != nil {
		return err
	}
	counts.answers.Add(1)
	if misled(reply, from) {
		return nil
	}
	payload, at := split(reply)
	var asker int64
	var asked int
	if _, err := fmt.Sscanf(payload, "%d %d", &asker, &asked); err == nil && asker != p.id && from == at {
		// For a socket that had this port before: it was closed or disconnected.
		counts.strangers.Add(1)
		return nil
	} else if err == nil && p.all[asked].backend != at {
		return fmt.Errorf("%v was asked, %v has answered", p.all[asked].front, at)
	}
	if i, ok := p.byFront[from]; ok {
		if p.all[i].backend != at {
			return fmt.Errorf("%q from %v reported as from %v", payload, at, from)
		}
	} else if from != at {
		return fmt.Errorf("%q from %v reported as from %v", payload, at, from)
	} else {
		counts.direct.Add(1)
	}
	return p.mayShow(from)
}

// mayShow checks an address that the application sees against what it has used.
func (p *place) mayShow(at netip.AddrPort) error {
	if i, ok := p.byFront[at]; ok {
		if p.used[i].Load()&usedService == 0 {
			return fmt.Errorf("%v is shown, which this socket has never used", at)
		}
		return nil
	}
	for _, i := range p.byBackend[at] {
		if p.used[i].Load()&usedBackend != 0 {
			return nil
		}
	}
	return fmt.Errorf("%v is shown, which this socket has never used directly", at)
}

// abort destroys the socket, unless it connects to another peer meanwhile.
func (p *place) abort() error {
	sa, err := unix.Getsockname(p.x.fd)
	if err != nil {
		return err
	}
	local, err := p.x.address(sa)
	if err != nil {
		return err
	}
	remote := netip.AddrPortFrom(p.x.any(), 0)
	if peer, err := p.x.tryPeername(); err == nil {
		remote = peer
		if i, ok := p.byFront[peer]; ok {
			remote = p.all[i].backend
		}
	}
	return destroySocket(p.family, unix.IPPROTO_UDP, local, remote, anyCookie)
}
