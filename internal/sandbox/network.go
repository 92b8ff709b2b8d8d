// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LoopbackUp brings up the loopback interface of the calling thread's network namespace.
func LoopbackUp() error {
	lo, err := loopback()
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	return nil
}

func loopback() (netlink.Link, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("looking for lo: %w", err)
	}
	return lo, nil
}

// MakeLocal makes all addresses of a network those of this host, in the calling thread's network namespace. The
// route that it returns can be deleted.
func MakeLocal(network netip.Prefix) (*netlink.Route, error) {
	lo, err := loopback()
	if err != nil {
		return nil, err
	}
	dst, err := netlink.ParseIPNet(network.String())
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL,
		Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if err := netlink.RouteReplace(route); err != nil {
		return nil, fmt.Errorf("adding a route to %v: %w", network, err)
	}
	return route, nil
}

// Numbered returns the address n after a, with at most 65,535 in all.
func Numbered(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	tail := b[len(b)-2:]
	binary.BigEndian.PutUint16(tail, binary.BigEndian.Uint16(tail)+uint16(n))
	a, _ = netip.AddrFromSlice(b)
	return a
}

// ListenBoth returns a UDP and a TCP socket that are bound to the same port of an address, which the kernel chooses.
func ListenBoth(addr string) (net.PacketConn, net.Listener, error) {
	for {
		datagrams, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		if err != nil {
			return nil, nil, err
		}
		streams, err := net.Listen("tcp", datagrams.LocalAddr().String())
		if err == nil {
			return datagrams, streams, nil
		}
		datagrams.Close()
		// The port that is free for UDP can be that of a TCP connection.
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, nil, err
		}
	}
}
