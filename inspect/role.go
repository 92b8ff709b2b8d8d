// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"iter"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Role is what the peer of a tuple is to the socket that holds it.
type Role string

const (
	// RoleConnected: the kernel has the socket connected to the peer. See [Socket.Connection].
	RoleConnected Role = "connected"
	// RoleDisconnected: the socket was connected to the peer last. The kernel has it connected elsewhere or
	// not at all: it was disconnected, refused, reset, destroyed or closed.
	RoleDisconnected Role = "disconnected"
	// RoleFormer: a datagram socket was connected to the peer before.
	RoleFormer Role = "former"
	// RoleSent: a datagram socket has sent to the peer.
	RoleSent Role = "sent"
)

// Tuples returns what the socket holds: connections first, then what it has sent to, sorted by peer.
func (s *Socket) Tuples() iter.Seq2[Role, *revnat.Tuple] {
	return func(yield func(Role, *revnat.Tuple) bool) {
		connection := s.Connection()
		role := func(t *revnat.Tuple, otherwise Role) Role {
			if t == connection {
				return RoleConnected
			}
			return otherwise
		}
		if s.Conn != nil && !yield(role(s.Conn, RoleDisconnected), s.Conn) {
			return
		}
		if s.Former != nil && !yield(role(s.Former, RoleFormer), s.Former) {
			return
		}
		for i := range s.Peers {
			if !yield(role(&s.Peers[i], RoleSent), &s.Peers[i]) {
				return
			}
		}
	}
}

// StateName is the name of the socket's state, of a datagram socket "unconnected" instead of "close".
func (s *Socket) StateName() string {
	if s.State == StateClose && s.Protocol != lbmap.ProtocolTCP {
		return "unconnected"
	}
	return s.State.String()
}
