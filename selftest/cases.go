// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Why the hash keeps an entry: the release hook looks for the key made of the socket's cookie and what
// the kernel says is its destination at that time.
const (
	whyAborted      = "the kernel zeroes the destination of an aborted UDP socket (IPv6: only the port)"
	whyDisconnected = "the kernel zeroes the destination of a disconnected socket (UDP over IPv6, and TCP: only the port)"
	whyUnconnected  = "a socket that only sends has no destination"
	whyElsewhere    = "the release hook sees only the last destination"
	whyEvicted      = "the hash is full: it evicts entries of live sockets"
)

// Sizes of the larger cases.
const (
	heldSockets = 200 // by the process that is killed
	liveSockets = 300 // with a hash of smallHash entries
	smallHash   = 100
)

// expectation is how many entries or tuples there are. before 0: more than none.
type expectation struct {
	before, after int
}

// testCase is one way for sockets to end, and what is known of it.
type testCase struct {
	name                   string
	protocol, family, kind string

	flavor
	// live is the number of sockets in a case for which the hash is too small.
	live int
	// run makes the sockets, calls scene.measure when they are as the case wants them, and ends them.
	run func(context.Context, *scene) error

	legacy, storage expectation
	// why the hash leaks or forgets.
	why string
}

func (t testCase) want(col column) expectation {
	if col == storageColumn {
		return t.storage
	}
	return t.legacy
}

// flavor is which addresses and sockets a case uses.
type flavor struct {
	protocol int  // IPPROTO_*
	socket   int  // AF_* of the socket
	v6       bool // of the addresses; an AF_INET6 socket uses IPv4 ones as v4-mapped
}

var (
	tcp4   = flavor{unix.IPPROTO_TCP, unix.AF_INET, false}
	tcp6   = flavor{unix.IPPROTO_TCP, unix.AF_INET6, true}
	udp4   = flavor{unix.IPPROTO_UDP, unix.AF_INET, false}
	udp6   = flavor{unix.IPPROTO_UDP, unix.AF_INET6, true}
	mapped = flavor{unix.IPPROTO_UDP, unix.AF_INET6, false}
)

func (n flavor) needsIPv6() bool { return n.socket == unix.AF_INET6 }

func (n flavor) family() string {
	switch {
	case n.v6:
		return "IPv6"
	case n.needsIPv6():
		return "v4-mapped"
	}
	return "IPv4"
}

// testCases returns all cases in the order of their ids, which are counted from 1. The first eight are
// those of the bug report that socket storage answers; ids and names are part of the JSON output.
func testCases() []testCase {
	const (
		tcp       = "TCP"
		connected = "UDP (Connected)"
		udp       = "UDP"
	)
	var cases []testCase
	add := func(name, protocol, kind string, n flavor, run func(context.Context, *scene) error) *testCase {
		one := expectation{before: 1}
		cases = append(cases, testCase{
			name: name, protocol: protocol, family: n.family(), kind: kind,
			flavor: n, run: run, legacy: one, storage: one,
		})
		return &cases[len(cases)-1]
	}
	// leaks: the hash keeps one entry.
	leaks := func(t *testCase, why string) { t.legacy.after, t.why = 1, why }

	add("tcp4-close", tcp, "Regular close", tcp4, connectClose)
	add("tcp4-abort", tcp, "Abort", tcp4, connectAbort)
	add("tcp6-close", tcp, "Regular close", tcp6, connectClose)
	add("tcp6-abort", tcp, "Abort", tcp6, connectAbort)
	add("udp4-close", connected, "Regular close", udp4, connectClose)
	leaks(add("udp4-abort", connected, "Abort", udp4, connectAbort), whyAborted)
	add("udp6-close", connected, "Regular close", udp6, connectClose)
	leaks(add("udp6-abort", connected, "Abort", udp6, connectAbort), whyAborted)

	leaks(add("udp4-unconnected-close", udp, "Send, close", udp4, sendClose), whyUnconnected)
	leaks(add("udp6-unconnected-close", udp, "Send, close", udp6, sendClose), whyUnconnected)
	const unspec = "Disconnect (AF_UNSPEC), close"
	leaks(add("udp4-unspec-close", connected, unspec, udp4, disconnectClose), whyDisconnected)
	leaks(add("udp6-unspec-close", connected, unspec, udp6, disconnectClose), whyDisconnected)
	// Both keep the former connection: replies of the old backend may still be in the queue.
	two := expectation{before: 2}
	for _, n := range []flavor{udp4, udp6} {
		name := "udp4-reconnect-service-close"
		if n.v6 {
			name = "udp6-reconnect-service-close"
		}
		t := add(name, connected, "Connect to another service, close", n, reconnectServiceClose)
		t.legacy, t.storage = two, two
		leaks(t, whyElsewhere)
	}
	const plain = "Connect to a plain address, close"
	leaks(add("udp4-reconnect-plain-close", connected, plain, udp4, reconnectPlainClose), whyElsewhere)
	leaks(add("udp6-reconnect-plain-close", connected, plain, udp6, reconnectPlainClose), whyElsewhere)
	add("udp4mapped-close", connected, "Regular close", mapped, connectClose)
	leaks(add("udp4mapped-abort", connected, "Abort", mapped, connectAbort), whyAborted)
	leaks(add("tcp4-unspec-close", tcp, unspec, tcp4, disconnectClose), whyDisconnected)
	leaks(add("tcp6-unspec-close", tcp, unspec, tcp6, disconnectClose), whyDisconnected)

	held := expectation{before: heldSockets}
	for _, n := range []flavor{udp4, udp6} {
		name := "kill4"
		if n.v6 {
			name = "kill6"
		}
		t := add(name, "TCP, UDP", fmt.Sprintf("SIGKILL of a process with %d sockets", heldSockets), n, holdKill)
		t.legacy, t.storage = held, held
	}
	add("udp4-passed-close", connected, "Passed by SCM_RIGHTS, closed there", udp4, passClose)
	add("udp6-passed-close", connected, "Passed by SCM_RIGHTS, closed there", udp6, passClose)
	for _, n := range []flavor{udp4, udp6} {
		name := "udp4-overfull"
		if n.v6 {
			name = "udp6-overfull"
		}
		t := add(name, connected, fmt.Sprintf("%d live sockets, hash of %d", liveSockets, smallHash), n, overfullClose)
		t.live = liveSockets
		// How many entries the hash really has room for is the kernel's business.
		t.legacy, t.storage = expectation{}, expectation{before: liveSockets}
		t.why = whyEvicted
	}
	return cases
}

// connectedScene is a service of the case and a socket connected to it.
func connectedScene(ctx context.Context, s *scene) (*client, error) {
	svc, err := s.addService(ctx, s.protocol, 0)
	if err != nil {
		return nil, err
	}
	return s.connect(s.flavor, svc)
}

func connectClose(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	return c.close()
}

func connectAbort(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	if err := c.destroy(s.backend(0)); err != nil {
		return err
	}
	return c.close()
}

func sendClose(ctx context.Context, s *scene) error {
	svc, err := s.addService(ctx, s.protocol, 0)
	if err != nil {
		return err
	}
	c, err := s.open(s.flavor)
	if err != nil {
		return err
	}
	if err := c.exchange(svc); err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	return c.close()
}

func disconnectClose(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	if err := c.disconnect(); err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	return c.close()
}

func reconnectServiceClose(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	other, err := s.addService(ctx, s.protocol, 1)
	if err != nil {
		return err
	}
	if err := c.connect(other); err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	return c.close()
}

func reconnectPlainClose(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	if err := c.connect(s.backend(1)); err != nil {
		return err
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	return c.close()
}

// holdKill: half of the sockets are TCP, half connected UDP.
func holdKill(ctx context.Context, s *scene) error {
	var targets []target
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		svc, err := s.addService(ctx, protocol, 0)
		if err != nil {
			return err
		}
		n := s.flavor
		n.protocol = protocol
		targets = append(targets, target{n.protocol, n.socket, svc, heldSockets / 2})
	}
	h, err := startHolder(ctx, targets)
	if err != nil {
		return err
	}
	defer h.kill()
	if err := s.measure(ctx); err != nil {
		return err
	}
	return h.kill()
}

func passClose(ctx context.Context, s *scene) error {
	c, err := connectedScene(ctx, s)
	if err != nil {
		return err
	}
	k, err := startKeeper(ctx)
	if err != nil {
		return err
	}
	defer k.kill()
	if err := k.take(c.fd); err != nil {
		return err
	}
	if err := c.close(); err != nil {
		return err
	}
	// The other process has it: nothing is released yet.
	if err := s.measure(ctx); err != nil {
		return err
	}
	return k.closeTaken()
}

func overfullClose(ctx context.Context, s *scene) error {
	svc, err := s.addService(ctx, s.protocol, 0)
	if err != nil {
		return err
	}
	clients := make([]*client, liveSockets)
	for i := range clients {
		if clients[i], err = s.connect(s.flavor, svc); err != nil {
			return err
		}
	}
	s.live = &Live{Sockets: len(clients)}
	for _, c := range clients {
		peer, err := c.peer()
		if err != nil {
			return err
		}
		if peer == svc {
			s.live.KnowService++
		}
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	for _, c := range clients {
		if err := c.close(); err != nil {
			return err
		}
	}
	return nil
}
