// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// on is a backend on loopback, which sockets can really be connected to.
func (s *scene) on(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(s.family.loopback.Unmap(), port)
}

// tupleOn is what a socket remembers of a service with a backend on loopback.
func (s *scene) tupleOn(service int, port uint16) tuple {
	t := s.tuple(service, int(port))
	t.peer = s.on(port)
	return t
}

// associate makes the kernel connect the socket, so that it is the socket's
// actual peer.
func (x *subject) associate(a netip.AddrPort) {
	x.s.Helper()
	must(x.s.T, unix.Connect(x.fd, sockaddr.Of(x.s.family.domain, a)))
	x.receivesFrom(a)
}

// dissociate makes the kernel end the association. The socket loses the port that
// the kernel has chosen for it, and gets another.
func (x *subject) dissociate() {
	x.s.Helper()
	must(x.s.T, sockaddr.Disconnect(x.fd))
	must(x.s.T, unix.Bind(x.fd, sockaddr.Of(x.s.family.domain, netip.AddrPortFrom(x.s.family.loopback, 0))))
	x.receivesFrom(x.s.on(9))
}

// receivesFrom makes programs find the socket as the receiver of a packet from a.
func (x *subject) receivesFrom(a netip.AddrPort) {
	x.s.Helper()
	local := localAddr(x.s.T, x.fd)
	packet := append(a.Addr().AsSlice(), local.Addr().AsSlice()...)
	packet = binary.BigEndian.AppendUint16(packet, a.Port())
	packet = binary.BigEndian.AppendUint16(packet, local.Port())
	copy(x.packet[:], packet)
}

// A send to the socket's actual peer, by its own address, ends what was sent to it
// under a service, but not the connection.
func TestSendToActualPeer(t *testing.T) {
	const port, other = 20001, 20002
	holdForDatagrams(t,
		rule{"does not end the connection", func(s *scene) {
			s.serve(1)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.sendDirect(s.on(port))
			s.wantConn(s.tupleOn(1, port))
			s.wantPeername(s.on(port), s.family.service(1))
			s.counted(counts{stored: 1})
		}},
		rule{"does not end the connection in mode dual", func(s *scene) {
			s.setMode(dual)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.sendDirect(s.on(port))
			s.wantConn(s.tupleOn(1, port))
			s.wantHash(s.tupleOn(1, port))
		}},
		rule{"ends what was sent to it under another service", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.send(s.tupleOn(2, port))
			s.sendDirect(s.on(port))
			s.wantConn(s.tupleOn(1, port))
			s.wantPeers()
			s.wantSource(s.on(port), s.family.service(1))
		}},
		rule{"gives the legacy entry back to the connection in mode dual", func(s *scene) {
			s.setMode(dual)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.send(s.tupleOn(2, port))
			s.wantHash(s.tupleOn(2, port))
			s.sendDirect(s.on(port))
			s.wantHash(s.tupleOn(1, port))
		}},
		rule{"drops the legacy entry in mode dual if it is connected to itself", func(s *scene) {
			s.setMode(dual)
			s.connectDirect(s.on(port))
			s.associate(s.on(port))
			s.send(s.tupleOn(2, port))
			s.sendDirect(s.on(port))
			s.wantHash()
		}},
		rule{"ends what was sent to it under a service if it is connected to itself", func(s *scene) {
			s.serve(1)
			s.connectDirect(s.on(port))
			s.associate(s.on(port))
			s.send(s.tupleOn(1, port))
			s.sendDirect(s.on(port))
			s.wantPeers()
			s.wantSource(s.on(port), s.on(port))
		}},
		rule{"a connect after one that the kernel has rejected keeps the former connection", func(s *scene) {
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.connect(s.tuple(2, 2))
			s.connect(s.tuple(3, 3).at(2000))
			s.wantConn(s.tuple(3, 3).at(2000))
			s.wantFormer(s.tupleOn(1, port))
			s.wantPeers(s.tuple(2, 2).overtaken())
			s.counted(counts{stored: 3})
		}},
		rule{"a connect after one that the kernel has rejected keeps that in the hash, in mode dual", func(s *scene) {
			s.setMode(dual)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.send(s.tuple(4, 2))
			s.connect(s.tuple(2, 2))
			s.connect(s.tuple(5, 5))
			s.wantHash(s.tupleOn(1, port), s.tuple(2, 2), s.tuple(5, 5))
			s.connect(s.tuple(3, 3))
			s.wantHash(s.tupleOn(1, port), s.tuple(2, 2), s.tuple(5, 5), s.tuple(3, 3))
			s.send(s.tuple(6, 3))
			s.connect(s.tuple(7, 7))
			s.wantHash(s.tupleOn(1, port), s.tuple(2, 2), s.tuple(5, 5), s.tuple(6, 3), s.tuple(7, 7))
		}},
		rule{"a connect back to the former connection's service after one that the kernel has rejected", func(s *scene) {
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.connect(s.tuple(2, 2))
			s.connect(s.tupleOn(3, port))
			s.wantConn(s.tupleOn(3, port))
			s.wantFormer()
			s.wantPeers(s.tuple(2, 2).overtaken())
			s.counted(counts{stored: 3, droppedReplaced: 1})
		}},
		rule{"does not end the former connection if the kernel has rejected the new one", func(s *scene) {
			s.serve(1, 2)
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.connect(s.tupleOn(2, other))
			s.sendDirect(s.on(port))
			s.wantPeername(s.on(port), s.family.service(1))
		}},
		rule{"on another port: ends what was sent there", func(s *scene) {
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.send(s.tupleOn(2, other))
			s.sendDirect(s.on(other))
			s.wantConn(s.tupleOn(1, port))
			s.wantPeers()
		}},
		rule{"on another address: ends the former connection there", func(s *scene) {
			former := s.tuple(2, 2)
			former.peer = netip.AddrPortFrom(former.peer.Addr(), port)
			s.connect(former)
			s.connectDirect(s.on(port))
			s.associate(s.on(port))
			s.sendDirect(former.peer)
			s.wantNoConn()
		}},
		rule{"ends the connection that the kernel has ended", func(s *scene) {
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.dissociate()
			s.sendDirect(s.on(port))
			s.wantNoConn()
			s.counted(counts{stored: 1, droppedDirect: 1})
		}},
		rule{"ends the connection that the kernel has replaced", func(s *scene) {
			s.connect(s.tupleOn(1, port))
			s.associate(s.on(port))
			s.connectDirect(s.on(other))
			s.associate(s.on(other))
			s.sendDirect(s.on(port))
			s.wantNoConn()
		}},
	)
}
