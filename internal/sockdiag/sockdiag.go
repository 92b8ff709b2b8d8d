// SPDX-License-Identifier: Apache-2.0

// Package sockdiag lists and destroys sockets by netlink (NETLINK_SOCK_DIAG), in the network namespace
// of the calling thread. Needs CAP_NET_ADMIN to destroy.
//
// Minimum kernel: Linux 4.9 with CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG, CONFIG_INET_UDP_DIAG and, to
// destroy, CONFIG_INET_DIAG_DESTROY.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/blocked"
)

// ErrNotSupported is returned where the kernel cannot list or destroy sockets of a protocol.
var ErrNotSupported = errors.New("no socket diagnosis")

// Socket is what identifies a socket.
type Socket struct {
	Family   int // AF_INET or AF_INET6
	Protocol int // IPPROTO_TCP or IPPROTO_UDP
	// Local and Remote are plain IPv4 for v4-mapped addresses. The zero AddrPort stands for the
	// unspecified address with port 0.
	Local, Remote netip.AddrPort
	// Device is the index of the interface that the socket is bound to, or 0.
	Device uint32
	// Cookie is the socket's, as of SO_COOKIE. [List] makes the kernel choose one for every socket.
	Cookie uint64
	// Inode is that of the socket's file. Only [List] sets it.
	Inode uint32
}

// Sizes in bytes, and where the struct inet_diag_sockid is in both structures.
const (
	requestSize  = 56 // struct inet_diag_req_v2
	requestID    = 8
	responseSize = 72 // struct inet_diag_msg
	responseID   = 4
	inodeAt      = 68
)

// request is a struct inet_diag_req_v2.
type request Socket

func (r *request) Len() int { return requestSize }

func (r *request) Serialize() []byte {
	b := make([]byte, requestSize)
	b[0], b[1] = byte(r.Family), byte(r.Protocol)
	binary.NativeEndian.PutUint32(b[4:8], ^uint32(0)) // every state
	id := b[requestID:]
	binary.BigEndian.PutUint16(id[0:2], r.Local.Port())
	binary.BigEndian.PutUint16(id[2:4], r.Remote.Port())
	putAddr := func(b []byte, a netip.Addr) {
		if r.Family == unix.AF_INET6 && a.IsValid() {
			a16 := a.As16()
			copy(b, a16[:])
		} else {
			copy(b, a.AsSlice())
		}
	}
	putAddr(id[4:20], r.Local.Addr())
	putAddr(id[20:36], r.Remote.Addr())
	binary.NativeEndian.PutUint32(id[36:40], r.Device)
	binary.NativeEndian.PutUint32(id[40:44], uint32(r.Cookie))
	binary.NativeEndian.PutUint32(id[44:48], uint32(r.Cookie>>32))
	return b
}

// parse reads a struct inet_diag_msg.
func parse(b []byte, protocol int) (Socket, error) {
	if len(b) < responseSize {
		return Socket{}, fmt.Errorf("socket of %d bytes, not %d", len(b), responseSize)
	}
	s := Socket{Family: int(b[0]), Protocol: protocol, Inode: binary.NativeEndian.Uint32(b[inodeAt:])}
	id := b[responseID:]
	addr := func(b []byte) netip.Addr {
		if s.Family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	}
	s.Local = netip.AddrPortFrom(addr(id[4:20]), binary.BigEndian.Uint16(id[0:2]))
	s.Remote = netip.AddrPortFrom(addr(id[20:36]), binary.BigEndian.Uint16(id[2:4]))
	s.Device = binary.NativeEndian.Uint32(id[36:40])
	s.Cookie = uint64(binary.NativeEndian.Uint32(id[40:44])) | uint64(binary.NativeEndian.Uint32(id[44:48]))<<32
	return s, nil
}

// attempts is how often a listing is repeated if the kernel says that it may be incomplete.
const attempts = 5

// List returns the sockets of a family and protocol that are connected to a port. With port 0 it returns
// all, connected or not.
//
// Returns an error wrapping [ErrNotSupported], or [blocked.ErrLocked] where the kernel serves another process that waits for a socket
// (before Linux 6.9).
func List(family, protocol int, remotePort uint16) ([]Socket, error) {
	filter := &request{Family: family, Protocol: protocol, Remote: netip.AddrPortFrom(netip.Addr{}, remotePort)}
	var messages [][]byte
	var err error
	for range attempts {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(filter)
		messages, err = execute("list", req, nl.SOCK_DIAG_BY_FAMILY)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing sockets: %w", supportError(err, protocol))
	}
	sockets := make([]Socket, 0, len(messages))
	for _, m := range messages {
		s, err := parse(m, protocol)
		if err != nil {
			return nil, fmt.Errorf("listing sockets: %w", err)
		}
		// Not every kernel applies the filter.
		if s.Family == family && (remotePort == 0 || s.Remote.Port() == remotePort) {
			sockets = append(sockets, s)
		}
	}
	return sockets, nil
}

// Probe returns an error wrapping [ErrNotSupported] if the kernel cannot list or destroy sockets of a
// protocol.
func Probe(protocol int) error {
	const nobodys = 1 // a port
	if _, err := List(unix.AF_INET, protocol, nobodys); err != nil {
		return err
	}
	err := Destroy(Socket{Family: unix.AF_INET, Protocol: protocol, Cookie: ^uint64(1)})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// supportError adds ErrNotSupported to the kernel's error for a protocol that it cannot list.
func supportError(err error, protocol int) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		module := "udp_diag"
		if protocol == unix.IPPROTO_TCP {
			module = "tcp_diag"
		}
		return fmt.Errorf("%w: load the modules inet_diag and %s", ErrNotSupported, module)
	}
	return err
}

// requests can have to wait for a socket that a process keeps locked.
var requests blocked.Calls

// execute makes a request, in the namespace of the calling thread. Returns an error wrapping [blocked.ErrLocked] if it has to wait.
func execute(about any, req *nl.NetlinkRequest, answers uint16) ([][]byte, error) {
	netlink, err := nl.Subscribe(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_SOCK_DIAG: {Socket: netlink}}
	answered := make(chan [][]byte, 1)
	err = requests.Do(about, func() { netlink.Close() }, func() error {
		messages, err := req.Execute(unix.NETLINK_SOCK_DIAG, answers)
		answered <- messages
		return err
	})
	if errors.Is(err, blocked.ErrLocked) {
		return nil, err
	}
	return <-answered, err
}

// Destroy aborts a socket; its application then gets ECONNABORTED. The kernel finds the socket by its addresses and
// device, and leaves it alone if its cookie differs.
//
// The kernel also finds a datagram socket that is no longer connected, by its local port: the caller can only
// check shortly before.
//
// Returns an error wrapping [os.ErrNotExist] if there is no such socket, or if the kernel cannot diagnose such
// sockets: List tells which. Returns one wrapping [ErrNotSupported] if the kernel cannot destroy, and one wrapping
// [blocked.ErrLocked] if a process keeps the socket locked.
func Destroy(s Socket) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	r := request(s)
	req.AddData(&r)
	_, err := execute(s.Cookie, req, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, blocked.ErrLocked):
	case errors.Is(err, unix.ENOENT):
		err = os.ErrNotExist
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("%w: the kernel is built without CONFIG_INET_DIAG_DESTROY", ErrNotSupported)
	}
	return fmt.Errorf("destroying socket %v to %v: %w", s.Local, s.Remote, err)
}
