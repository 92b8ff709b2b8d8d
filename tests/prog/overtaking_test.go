// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// Threads connect one socket, to services and to other servers, without waiting for each other. The hook of a connect
// runs before the kernel comes to it: other hooks, other connects and a disconnect may come in between, and the kernel
// may reject it. Whatever the order, what the socket is then connected to has the name of a service if that was connected
// to, and so have the answers of all backends, then and later.
func TestConnectsOvertakeEachOther(t *testing.T) {
	const runs = 100
	random := rand.New(rand.NewPCG(*randomSeed, 1))
	for name, mode := range map[string]mode{"storage": storage, "mirror": mirror, "dual": dual} {
		for _, f := range families {
			t.Run(name+" "+f.name, func(t *testing.T) {
				for i := range runs {
					t.Run(fmt.Sprint(i), func(t *testing.T) {
						s := newScene(t, shared, f, false)
						s.setMode(mode)
						s.overtake(random)
					})
				}
			})
		}
	}
}

// overtake takes steps of threads that connect, send and disconnect in a random order.
func (s *scene) overtake(random *rand.Rand) {
	const (
		steps     = 60
		services  = 7
		backends  = 5 // two have two services each
		firstPort = 20001
		plainPort = 20101 // of servers that are no backends
	)
	for n := range services {
		s.serve(n)
	}
	var pending [3]netip.AddrPort // by thread: to what the hook has turned a connect that the kernel has not come to
	var actual netip.AddrPort
	reached := map[netip.AddrPort]bool{} // backends that the socket has been turned to
	var taken []string
	for range steps {
		n := random.IntN(services)
		to := s.tupleOn(n, uint16(firstPort+n%backends))
		thread := random.IntN(len(pending))
		next := &pending[thread]
		plain := s.on(uint16(plainPort + n))
		var step string
		switch p := random.IntN(24); {
		case p == 0:
			step = "disconnect"
			s.dissociate()
			actual = netip.AddrPort{}
		case p < 6:
			step = fmt.Sprintf("send to %v", to)
			s.send(to)
			reached[to.peer] = true
		case p < 7:
			step = fmt.Sprintf("send to %v, of no service", plain)
			s.sendDirect(plain)
		case !next.IsValid() && p < 10:
			step = fmt.Sprintf("thread %d connects to %v, of no service: the hook", thread, plain)
			s.connectDirect(plain)
			*next = plain
		case !next.IsValid():
			step = fmt.Sprintf("thread %d connects to %v: the hook", thread, to)
			s.connect(to)
			*next = to.peer
			reached[to.peer] = true
		case p < 9:
			step = fmt.Sprintf("thread %d: the kernel rejects %v", thread, *next)
			*next = netip.AddrPort{}
		default:
			step = fmt.Sprintf("thread %d: the kernel connects to %v", thread, *next)
			s.associate(*next)
			actual, *next = *next, netip.AddrPort{}
		}
		taken = append(taken, step)
		if actual.IsValid() && (s.peername(actual) != actual) != reached[actual] {
			s.Fatalf("getpeername says %v of %v after\n%s", s.peername(actual), actual, strings.Join(taken, "\n"))
		}
		for backend := range reached {
			if s.source(backend) == backend {
				s.Fatalf("what is received from %v has no service's address after\n%s", backend, strings.Join(taken, "\n"))
			}
		}
	}
}
