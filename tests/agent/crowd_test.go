// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
	"github.com/revsk/revsk/lbmap"
)

// family is the addresses of a family: a service, and its backend.
type family struct {
	name    string
	domain  int
	service netip.AddrPort
	backend netip.AddrPort
}

var families = []family{
	{"IPv4", unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:53"), netip.MustParseAddrPort("127.0.1.1:7000")},
	{"IPv6", unix.AF_INET6, netip.MustParseAddrPort("[fd00::96:1]:53"), netip.MustParseAddrPort("[::1]:7000")},
}

// startServers serves the backends: datagrams are returned, streams are accepted and kept.
func startServers() error {
	for _, f := range families {
		datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.backend))
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := datagrams.ReadFromUDPAddrPort(b)
				if err == nil {
					_, _ = datagrams.WriteToUDPAddrPort(b[:n], from)
				}
			}
		}()
		streams, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(f.backend))
		if err != nil {
			return err
		}
		go func() {
			for {
				if c, err := streams.Accept(); err == nil {
					go func() { _, _ = c.Read(make([]byte, 1)); c.Close() }()
				}
			}
		}()
	}
	return nil
}

// publish makes the services, in the maps that the agent has pinned.
func publish(t *testing.T) {
	t.Helper()
	services, err := lbmap.OpenWriter(mapsDir)
	require.NoError(t, err)
	defer services.Close()
	for _, f := range families {
		for _, protocol := range []lbmap.Protocol{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			_, err := services.Upsert(t.Context(), lbmap.Service{
				Frontend: lbmap.Frontend{AddrPort: f.service, Protocol: protocol},
				Backends: []lbmap.Backend{{AddrPort: f.backend, Protocol: protocol}},
			})
			require.NoError(t, err)
		}
	}
}

// kind is a kind of socket.
type kind struct {
	family
	stream    bool
	connected bool
}

func kinds() (all []kind) {
	for _, f := range families {
		all = append(all, kind{f, true, true}, kind{f, false, true}, kind{f, false, false})
	}
	return all
}

// open opens a socket that knows its service.
func (k kind) open() (int, error) {
	typ := unix.SOCK_DGRAM
	if k.stream {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(k.domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.Timeval{Sec: 5}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil && k.connected {
		err = unix.Connect(fd, sockaddr.Of(k.domain, k.service))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("opening a socket: %w", err)
	}
	return fd, nil
}

// ask asks the socket for its peer, or its service for an answer. It returns whether what comes is from the
// service.
func (k kind) ask(fd int) (bool, error) {
	if k.connected {
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return false, err
		}
		if sockaddr.AddrPort(peer) != k.service || k.stream {
			return sockaddr.AddrPort(peer) == k.service, nil
		}
	}
	var to unix.Sockaddr
	if !k.connected {
		to = sockaddr.Of(k.domain, k.service)
	}
	if err := unix.Sendto(fd, []byte("?"), 0, to); err != nil {
		return false, err
	}
	for {
		_, from, err := unix.Recvfrom(fd, make([]byte, 8), 0)
		switch {
		case errors.Is(err, unix.EINTR): // Go's scheduler, and a socket with a timeout
		case err != nil:
			return false, err
		default:
			return sockaddr.AddrPort(from) == k.service, nil
		}
	}
}

// crowd is sockets of all kinds that ask without pause, and new ones all the time.
type crowd struct {
	t              *testing.T
	answers, wrong atomic.Int64
	stop           atomic.Bool
	workers        sync.WaitGroup
}

const crowdSize = 96

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	c := &crowd{t: t}
	all := kinds()
	const workers = 4
	for range workers {
		var fds []int
		for i := range crowdSize / workers {
			fd, err := all[i%len(all)].open()
			require.NoError(t, err)
			fds = append(fds, fd)
		}
		c.workers.Go(func() {
			if err := c.work(all, fds); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *crowd) work(all []kind, fds []int) (err error) {
	defer func() {
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	for i := 0; !c.stop.Load(); i++ {
		k := all[i%len(fds)%len(all)]
		if err := c.count(k, fds[i%len(fds)]); err != nil {
			return err
		}
		if i%7 == 0 { // a new one
			fd, err := k.open()
			if err != nil {
				return err
			}
			if err := errors.Join(c.count(k, fd), unix.Close(fd)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *crowd) count(k kind, fd int) error {
	ok, err := k.ask(fd)
	if err != nil {
		return fmt.Errorf("%s, stream %v, connected %v: %w", k.name, k.stream, k.connected, err)
	}
	c.answers.Add(1)
	if !ok {
		c.wrong.Add(1)
	}
	return nil
}

// during does something while the crowd asks, has it ask some more, and returns how many answers there were and
// how many of them were wrong.
func (c *crowd) during(what string, f func()) (wrong int64) {
	c.t.Helper()
	answers, before := c.answers.Load(), c.wrong.Load()
	f()
	for until, start := c.answers.Load()+2000, time.Now(); c.answers.Load() < until; time.Sleep(time.Millisecond) {
		require.Less(c.t, time.Since(start), time.Minute, "the sockets have stopped asking")
	}
	wrong = c.wrong.Load() - before
	c.t.Logf("%-40s %7d answers, %d wrong", what, c.answers.Load()-answers, wrong)
	return wrong
}

func (c *crowd) end() {
	c.stop.Store(true)
	c.workers.Wait()
}
