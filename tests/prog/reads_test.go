// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"testing"

	"github.com/revsk/revsk/lbmap"
)

func TestReceive(t *testing.T) {
	holdForDatagrams(t,
		rule{"reports the service that the source was sent to under", func(s *scene) {
			s.serve(1, 2)
			s.send(s.tuple(1, 1), s.tuple(2, 2))
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.wantSource(s.family.backend(2), s.family.service(2))
		}},
		rule{"reports the service that the socket is connected to", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.service(1))
		}},
		rule{"looks at the peers before conn", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.wantSource(s.family.backend(1), s.family.service(2))
		}},
		rule{"looks at conn if the peers have another source", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 2))
			s.wantSource(s.family.backend(1), s.family.service(1))
		}},
		rule{"looks at conn, too, if the socket has sent before it was connected", func(s *scene) {
			s.send(s.tuple(2, 2))
			s.connect(s.tuple(1, 1))
			s.wantSource(s.family.backend(1), s.family.service(1))
			s.connectDirect(s.family.backend(1))
			s.connect(s.tuple(3, 3))
			s.wantSource(s.family.backend(3), s.family.service(3))
		}},
		rule{"reports the service of a former connection", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantSource(s.family.backend(1), s.family.service(1))
		}},
		rule{"finds the source in slots and table", func(s *scene) {
			const n = slots + 3
			s.sendToPeers(n)
			for i := 1; i <= n; i++ {
				s.serve(i)
			}
			for i := 1; i <= n; i++ {
				s.wantSource(s.family.backend(i), s.family.service(i))
			}
		}},
		rule{"leaves a source alone that the socket does not know", func(s *scene) {
			s.serve(1, 2)
			s.wantSource(s.family.backend(1), s.family.backend(1))
			s.connect(s.tuple(1, 1))
			s.sendToPeers(slots + 1)
			for _, peer := range []int{1, 4} {
				address := s.family.backend(peer)
				other := netip.AddrPortFrom(address.Addr(), address.Port()+1)
				s.wantSource(other, other)
			}
			s.wantSource(s.family.backend(9), s.family.backend(9))
			s.counted(counts{stored: 5})
		}},
		rule{"leaves a source alone that another socket knows", func(s *scene) {
			s.serve(1, 2, 3, 4)
			s.connect(s.tuple(1, 1))
			s.sendToPeers(slots + 1)
			other := s.another()
			for i := 1; i <= slots+1; i++ {
				other.wantSource(s.family.backend(i), s.family.backend(i))
			}
		}},
		rule{"leaves an address without a port alone", func(s *scene) {
			s.serve(1, 2, 3)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.send(s.tuple(3, 3))
			s.serveNothing()
			for _, none := range s.withoutPort() {
				s.wantSource(none, none)
			}
		}},
		rule{"changes nothing", func(s *scene) {
			s.serve(1, 2, 3, 4)
			s.connect(s.tuple(9, 9))
			s.connect(s.tuple(1, 1))
			s.sendToPeers(slots + 1)
			for i := 1; i <= slots+2; i++ {
				s.unchangedBy("a read", func() { s.source(s.family.backend(i)) })
			}
		}},
	)
}

// serveNothing creates the service of an empty tuple.
func (s *scene) serveNothing() {
	s.Helper()
	key := lbmap.ServiceKey{AddrPort: netip.AddrPortFrom(netip.IPv6Unspecified(), 0)}
	must(s.T, s.h.servicesFor(key.AddrPort.Addr()).Put(key, lbmap.ServiceValue{Count: 1}))
}

func TestGetpeername(t *testing.T) {
	holdForAll(t,
		rule{"reports the service that the socket is connected to", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.service(1))
		}},
		rule{"reports the service only if the actual peer is its backend", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(1, 1))
			for _, other := range neighbours(s.family.backend(1)) {
				s.wantPeername(other, other)
			}
			s.wantConn(s.tuple(1, 1))
		}},
		rule{"leaves the peer alone if the socket is connected to no service", func(s *scene) {
			s.serve(1)
			s.wantPeername(s.family.backend(1), s.family.backend(1))
		}},
		rule{"does not know a connection of another socket", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(1, 1))
			s.another().wantPeername(s.family.backend(1), s.family.backend(1))
		}},
	)
	holdForDatagrams(t,
		rule{"says nothing of what was only sent", func(s *scene) {
			s.serve(1, 2)
			s.send(s.tuple(1, 1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.connect(s.tuple(2, 2))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
			s.wantPeers(s.tuple(1, 1))
		}},
		rule{"says nothing of what was only sent, in the table either", func(s *scene) {
			s.serve(1, 2, 3, 4, 9)
			s.sendToPeers(slots + 1)
			s.connect(s.tuple(9, 9))
			s.wantPeername(s.family.backend(4), s.family.backend(4))
		}},
		rule{"does not change when the socket sends to another service with the same backend", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.wantPeername(s.family.backend(1), s.family.service(1))
		}},
		rule{"knows the former connection if the kernel has rejected the new one", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.wantPeername(s.family.backend(2), s.family.service(2))
		}},
		rule{"knows the former connection though the socket has sent to its peer by another service since", func(s *scene) {
			s.serve(1, 2, 3)
			s.connect(s.tuple(1, 1))
			s.send(s.tuple(2, 1))
			s.connect(s.tuple(3, 3))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.wantSource(s.family.backend(1), s.family.service(2))
		}},
		rule{"knows a connect that others have overtaken if the kernel comes to it last", func(s *scene) {
			const n = slots + 4
			for i := 1; i <= n; i++ {
				s.connect(s.tuple(i, i))
			}
			for i := 1; i <= n; i++ {
				s.wantPeername(s.family.backend(i), s.family.service(i))
			}
		}},
		rule{"knows it though the socket has sent to its peer by another service since", func(s *scene) {
			const n = slots + 4
			for i := 1; i <= n; i++ {
				s.connect(s.tuple(i, i))
			}
			for _, i := range []int{1, n - 2} { // in a slot, and in the table
				s.send(s.tuple(20+i, i))
				s.wantPeername(s.family.backend(i), s.family.service(20+i))
			}
		}},
		rule{"knows it though the socket had sent to its peer by another service before others overtook it", func(s *scene) {
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.send(s.tuple(21, 1))
			s.connect(s.tuple(3, 3))
			s.wantPeername(s.family.backend(1), s.family.service(21))
		}},
		rule{"leaves an address without a port alone", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.serveNothing()
			for _, none := range s.withoutPort() {
				s.wantPeername(none, none)
			}
		}},
		rule{"knows the former connection if the new one is to no service", func(s *scene) {
			s.serve(1)
			s.connect(s.tuple(1, 1))
			s.connectDirect(s.family.backend(2))
			s.wantPeername(s.family.backend(1), s.family.service(1))
			s.wantPeername(s.family.backend(2), s.family.backend(2))
		}},
		rule{"knows the former connection if the kernel has rejected a new one to the service and to its backend", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(2))
			s.wantPeername(s.family.backend(1), s.family.service(1))
		}},
		rule{"does not know the former connection once the socket has connected to its peer itself", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tuple(1, 1))
			s.connect(s.tuple(2, 2))
			s.connectDirect(s.family.backend(1))
			s.wantPeername(s.family.backend(1), s.family.backend(1))
		}},
	)
}

// The storage of a socket dies with the socket: BPF_PROG_TEST_RUN makes one for
// each run.
func TestStorageLivesAsLongAsTheSocket(t *testing.T) {
	s := newScene(t, shared, ipv4, false)
	s.serve(1)
	service, backend := s.family.service(1), s.family.backend(1)
	in := s.input()
	in.Tuple, in.Address = s.tuple(1, 1).wire(), wireEndpoint(backend)
	for _, c := range []struct{ write, read string }{
		{"connect_peername_own", "peername_own"},
		{"sendmsg_source_own", "source_own"},
	} {
		if got := reported(backend, s.h.run(t, c.write, in)); got != service {
			t.Errorf("%s: reports %v, want %v", c.write, got, service)
		}
		if got := reported(backend, s.h.run(t, c.read, in)); got != backend {
			t.Errorf("%s: the next socket reports %v, want %v", c.read, got, backend)
		}
	}
	// Both sockets are gone without a release.
	s.counted(counts{stored: 2})
	s.h.reset(t)
}
