// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses are of the ranges for documentation (RFC 5737, RFC 3849): services that no load balancer
// has, and backends that exist in the sandbox's network namespace only.
var (
	service4  = netip.MustParseAddr("192.0.2.1")
	service6  = netip.MustParseAddr("2001:db8::1")
	backends4 = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	backends6 = []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")}
)

const backendPort = 7007

// network is the backends: two per protocol and family, which answer with what they are sent.
type network struct {
	servers []io.Closer
	// noIPv6 says why there is no IPv6; nil if there is.
	noIPv6 error
}

func startNetwork(ctx context.Context) (_ *network, err error) {
	n := &network{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for _, addr := range backends4 {
		if err := n.serve(ctx, addr); err != nil {
			return nil, err
		}
	}
	if n.noIPv6 = tryIPv6(); n.noIPv6 != nil {
		return n, nil
	}
	for _, addr := range backends6 {
		if err := n.serve(ctx, addr); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// tryIPv6 returns a notSupportedError if the kernel has no IPv6, or it is off.
func tryIPv6() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return notSupportedError("IPv6: " + err.Error())
	}
	defer unix.Close(fd)
	// New network namespaces may have it switched off, which is ours to change in this one.
	for _, dev := range []string{"all", "lo"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+dev+"/disable_ipv6", []byte("0"), 0)
	}
	if err := addAddress(backends6[0]); err != nil {
		return notSupportedError("IPv6: " + err.Error())
	}
	return nil
}

func addAddress(addr netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	err = netlink.AddrAdd(lo, &netlink.Addr{
		IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding %v to lo: %w", addr, err)
	}
	return waitForAddress(addr)
}

// waitForAddress returns when sockets can be bound and connected to the address: the kernel puts
// IPv6 addresses into use a moment after they were added.
func waitForAddress(addr netip.Addr) error {
	deadline := time.Now().Add(settleTime)
	local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	remote := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, backendPort))
	for {
		conn, err := net.DialUDP("udp", local, remote)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %v: %w", addr, err)
		}
		time.Sleep(settleStep)
	}
}

func (n *network) serve(ctx context.Context, addr netip.Addr) error {
	if err := addAddress(addr); err != nil {
		return err
	}
	at := netip.AddrPortFrom(addr, backendPort).String()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return err
	}
	n.servers = append(n.servers, l)
	go echoStreams(l)
	pc, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		return err
	}
	n.servers = append(n.servers, pc)
	go echoDatagrams(pc)
	return nil
}

func echoStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			// Closing when the client does lets the kernel free the client's socket at once.
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func echoDatagrams(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Another error is about a client that has gone.
		if err == nil {
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}
}

func (n *network) close() error {
	var errs []error
	for _, s := range n.servers {
		errs = append(errs, s.Close())
	}
	n.servers = nil
	return errors.Join(errs...)
}
