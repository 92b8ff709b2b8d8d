// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// Socket is a socket that holds at least one tuple, and what the kernel says of it.
type Socket struct {
	Protocol lbmap.Protocol
	Family   Family
	State    State
	// Local is the address that the socket is bound to. Unspecified where it is bound to a port only.
	Local netip.AddrPort
	// Peer is the address that the kernel has the socket connected to: of a backend, if Conn
	// or Former is right. The zero AddrPort says that it is not connected, or no longer.
	Peer netip.AddrPort
	// NetNS is the socket's network namespace.
	NetNS NetNS
	// Cookie is the socket's cookie, as of SO_COOKIE. 0, before Linux 5.12 only: it has none yet.
	Cookie uint64
	// Inode is that of the socket's file, as in the links of /proc/PID/fd. 0: the socket has no
	// file, because it has been closed and the kernel is still about to end its connection.
	Inode uint64
	// Subflow: the socket is one of the connections of an MPTCP socket, which is what applications have open. The
	// inode and the owners are those of that one.
	Subflow bool
	// owned: a system call worked on it when it was read, or kept it locked.
	owned bool
	// Conn is what the socket is connected to, nil if that is no service.
	Conn *revnat.Tuple
	// Former is what a datagram socket was connected to before, nil if that was no service. The socket is
	// connected to it still if the kernel has rejected the connection that was to replace it.
	Former *revnat.Tuple
	// Peers are the tuples of the peers that a datagram socket has sent to, sorted by peer.
	Peers []revnat.Tuple
	// Owners are the processes that have the socket open, sorted by id. Those that have not got a
	// process id in the caller's namespace are missing, and so are those that hold the socket
	// other than by a file descriptor (in flight in a message, in an io_uring). The slice may be that of
	// other sockets, too.
	Owners []Process
}

// Family is the address family that a socket was made with. An IPv6 socket may have IPv4 addresses.
type Family uint16

// The families of sockets that hold tuples.
const (
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

// String returns "ipv4" or "ipv6", and the number of any other family.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	}
	return strconv.Itoa(int(f))
}

// State is the kernel's state of a socket. A datagram socket is in [StateEstablished] while it is
// connected, and otherwise in [StateClose].
type State uint8

// The states that have a meaning for datagram sockets too.
const (
	StateEstablished State = unix.BPF_TCP_ESTABLISHED
	StateClose       State = unix.BPF_TCP_CLOSE
)

var stateNames = [...]string{
	unix.BPF_TCP_ESTABLISHED:  "established",
	unix.BPF_TCP_SYN_SENT:     "syn-sent",
	unix.BPF_TCP_SYN_RECV:     "syn-recv",
	unix.BPF_TCP_FIN_WAIT1:    "fin-wait-1",
	unix.BPF_TCP_FIN_WAIT2:    "fin-wait-2",
	unix.BPF_TCP_TIME_WAIT:    "time-wait",
	unix.BPF_TCP_CLOSE:        "close",
	unix.BPF_TCP_CLOSE_WAIT:   "close-wait",
	unix.BPF_TCP_LAST_ACK:     "last-ack",
	unix.BPF_TCP_LISTEN:       "listen",
	unix.BPF_TCP_CLOSING:      "closing",
	unix.BPF_TCP_NEW_SYN_RECV: "new-syn-recv",
}

// String returns the name of the TCP state in lower case, as in "fin-wait-1", and the number of a
// state that it does not know.
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return strconv.Itoa(int(s))
}

// NetNS is a network namespace.
type NetNS struct {
	// Inode is the number in the link /proc/PID/ns/net.
	Inode uint64
	// Cookie is the namespace's cookie, as of SO_NETNS_COOKIE. 0, before Linux 5.12: not known.
	Cookie uint64
	// Name is that of `ip netns`. Empty: it has none there.
	Name string
}

// Process is a process that has a socket open.
type Process struct {
	// ID is the process id in the caller's namespace.
	ID int
	// Command is the name of the program, cut by the kernel to 15 bytes.
	Command string
}

func compareSockets(a, b Socket) int { return a.Compare(&b) }

// Compare orders by namespace, protocol, family, local address, peer, cookie and inode. It returns -1, 0 or 1.
func (s *Socket) Compare(o *Socket) int {
	return cmp.Or(
		cmp.Compare(s.NetNS.Name, o.NetNS.Name),
		cmp.Compare(s.NetNS.Inode, o.NetNS.Inode),
		cmp.Compare(s.Protocol, o.Protocol),
		cmp.Compare(s.Family, o.Family),
		s.Local.Compare(o.Local),
		s.Peer.Compare(o.Peer),
		cmp.Compare(s.Cookie, o.Cookie),
		cmp.Compare(s.Inode, o.Inode),
	)
}

func comparePeers(a, b revnat.Tuple) int { return a.Peer.Compare(b.Peer) }
