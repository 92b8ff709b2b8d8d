// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/revnat"
)

// Connection returns the tuple by which the socket is connected to a service; nil if it is not
// connected, or not to a service. It is the tuple of the socket's actual peer: that of Conn, or of a
// former connection that the kernel has kept because it rejected the one that was to replace it, or of
// a connect that another has overtaken. What the socket has only sent to is no connection.
func (s *Socket) Connection() *revnat.Tuple {
	if !s.isConnected() {
		return nil
	}
	if s.Conn != nil && s.Conn.Peer == s.Peer {
		return s.Conn
	}
	if s.Former != nil && s.Former.Peer == s.Peer {
		return s.Former
	}
	for i := range s.Peers {
		if t := &s.Peers[i]; t.Overtaken && t.Peer == s.Peer {
			return t
		}
	}
	return nil
}

// isConnected says whether an application has the socket open, and it is connected or is about to be.
func (s *Socket) isConnected() bool {
	switch s.State {
	case StateClose, unix.BPF_TCP_LISTEN, unix.BPF_TCP_TIME_WAIT, unix.BPF_TCP_NEW_SYN_RECV:
		return false
	}
	return s.Peer.IsValid() && s.Inode != 0
}
