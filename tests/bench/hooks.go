// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Sockets that are opened, used once and closed together.
	batchSockets = 256
	// Sockets that are used again and again, in turn, and how often each.
	busySockets = 16
	busyTimes   = 64

	// What the life of an unconnected socket is taken to be.
	lifeSends = 100
)

// benchHooks measures each hook, and what an application feels of it.
func benchHooks(ctx context.Context, b *bench) error {
	if err := b.sanity(); err != nil {
		return err
	}
	var played []scene
	for _, s := range []struct {
		name   string
		scenes []scene
	}{
		{"connected", []scene{connected("UDP", unix.IPPROTO_UDP), connected("TCP", unix.IPPROTO_TCP)}},
		{"life", []scene{tightLife("UDP", unix.IPPROTO_UDP), tightLife("TCP", unix.IPPROTO_TCP)}},
		{"unconnected", []scene{unconnected}},
		{"stranger", []scene{stranger}},
		{"ordinary", []scene{ordinary("UDP", unix.IPPROTO_UDP), ordinary("TCP", unix.IPPROTO_TCP)}},
	} {
		if *scenes == "" || slices.Contains(strings.Split(*scenes, ","), s.name) {
			played = append(played, s.scenes...)
		}
	}
	if len(played) == 0 {
		return fmt.Errorf("there are no scenes %q", *scenes)
	}
	r, err := b.play(ctx, *rounds, b.variants, played...)
	if err != nil {
		return err
	}
	b.report.addResults("hooks", r)
	return nil
}

// sanity checks that the variants do what is measured: what is fast because it does nothing is not to
// be reported.
func (b *bench) sanity() error {
	for _, v := range b.variants {
		if v.dp == nil {
			continue // the floor does nothing, and is to
		}
		if err := b.enter(v); err != nil {
			return err
		}
		for _, f := range families {
			k := &kit{bench: b, variant: v, family: f}
			if err := k.try(func(k *kit) { k.sanity() }); err != nil {
				return fmt.Errorf("%s, %s: %w", v.name, f.name, err)
			}
		}
	}
	return nil
}

func (k *kit) sanity() {
	fd := openSocket(k.family.domain, unix.IPPROTO_UDP)
	defer closeSocket(fd)
	service := k.family.service(1)
	var peer address
	connect(fd, newAddress(service))
	getpeername(fd, &peer)
	if peer.addrPort() != service {
		panic(fmt.Errorf("a socket connected to %v shows %v", service, peer.addrPort()))
	}
	// To the backend, that is; and its answer is the service's.
	var client address
	getsockname(fd, &client)
	k.servers.answer(k.family, k.family.backend(backendOf(1, fd)).Addr(), client.addrPort())
	var from address
	if !receive(fd, &from) || from.addrPort() != service {
		panic(fmt.Errorf("the answer of %v is from %v", service, from.addrPort()))
	}
}

// target is what the floor's sockets use in place of services, which nothing translates there: a
// backend of the service.
func (k *kit) target(service int) *address {
	if k.dp == nil {
		return newAddress(k.family.backend(service))
	}
	return newAddress(k.family.service(service))
}

// targets are those of the services that most sections use, in turn.
func (k *kit) targets(n int) []*address {
	all := make([]*address, n)
	for i := range all {
		all[i] = k.target(i % hookServices)
	}
	return all
}

// connected plays the life of connected sockets, a batch at a time: with each step for all of them
// before the next one.
func connected(name string, protocol int) scene {
	return func(k *kit) {
		k.inserts(batchSockets)
		to := k.targets(batchSockets)
		fds := openSockets(k.family.domain, protocol, batchSockets)
		var peer address
		work := func(s string) string { return fmt.Sprintf("%s, %s %s", s, name, k.family.name) }
		sum := k.measure(work("connect to a service"), len(fds), func() {
			for i, fd := range fds {
				connect(fd, to[i])
			}
		}, k.hook("connect"))
		c := k.measure("", len(fds), func() {
			for _, fd := range fds {
				getpeername(fd, &peer)
			}
		}, k.hook("getpeername"))
		sum.hooks, sum.call = sum.hooks+c.hooks, sum.call+c.call
		k.measure(work("getpeername of a service"), busyTimes*busySockets, func() {
			for range busyTimes {
				for _, fd := range fds[:busySockets] {
					getpeername(fd, &peer)
				}
			}
		}, k.hook("getpeername"))
		c = k.measure(work("release of a connected socket"), len(fds), func() {
			for _, fd := range fds {
				closeSocket(fd)
			}
		}, "release")
		k.add(work("life: connect, getpeername, release, a batch at a time"), sum.hooks+c.hooks, sum.call+c.call)
		if protocol == unix.IPPROTO_TCP {
			k.servers.hangUp(k.family)
		}
	}
}

// tightLife opens, uses and closes one socket after the other.
func tightLife(name string, protocol int) scene {
	return func(k *kit) {
		k.inserts(batchSockets)
		to := k.targets(batchSockets)
		var peer address
		k.measure(fmt.Sprintf("life: connect, getpeername, release, one socket at a time, %s %s", name, k.family.name), batchSockets, func() {
			for i := range batchSockets {
				fd := openSocket(k.family.domain, protocol)
				connect(fd, to[i])
				getpeername(fd, &peer)
				closeSocket(fd)
			}
		}, k.hook("connect"), k.hook("getpeername"), "release")
		if protocol == unix.IPPROTO_TCP {
			k.servers.hangUp(k.family)
		}
	}
}

// unconnected plays the life of sockets that send to a service without being connected.
func unconnected(k *kit) {
	k.inserts(batchSockets)
	to := k.targets(batchSockets)
	fds := openSockets(k.family.domain, unix.IPPROTO_UDP, batchSockets)
	work := func(s string) string { return fmt.Sprintf("%s, UDP %s", s, k.family.name) }

	first := k.measure(work("first send to a service"), len(fds), func() {
		for i, fd := range fds {
			sendTo(fd, to[i])
		}
	}, k.hook("sendmsg"))
	k.servers.drain(k.family)
	busy := fds[:busySockets]
	send := k.measure(work("send to a known service"), busyTimes*len(busy), func() {
		for range busyTimes {
			for i, fd := range busy {
				sendTo(fd, to[i])
			}
		}
	}, k.hook("sendmsg"))
	k.servers.drain(k.family)

	clients := k.clients(busy)
	backends := make([]netip.Addr, len(busy))
	for i, fd := range busy {
		backends[i] = k.family.backend(backendOf(i%hookServices, fd)).Addr()
	}
	receive := k.receive(work("receive from a service"), busy, clients, func(i int) netip.Addr { return backends[i] })
	k.receive(work("receive from a stranger, socket with state"), busy, clients, func(int) netip.Addr { return k.family.plain })
	release := k.measure(work("release of a socket that has sent"), len(fds), func() {
		for _, fd := range fds {
			closeSocket(fd)
		}
	}, "release")
	k.add(work(fmt.Sprintf("life: first send, %d sends, %[1]d receives, release", lifeSends)),
		first.hooks+lifeSends*(send.hooks+receive.hooks)+release.hooks,
		first.call+lifeSends*(send.call+receive.call)+release.call)
}

// stranger receives on sockets that have not sent to any service.
func stranger(k *kit) {
	fds := openSockets(k.family.domain, unix.IPPROTO_UDP, busySockets)
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if k.family == ipv6 {
		loopback = netip.IPv6Loopback()
	}
	at := newAddress(netip.AddrPortFrom(loopback, 0))
	for _, fd := range fds {
		bindTo(fd, at)
	}
	k.receive(fmt.Sprintf("receive from a stranger, socket without state, UDP %s", k.family.name), fds, k.clients(fds),
		func(int) netip.Addr { return k.family.plain })
	for _, fd := range fds {
		closeSocket(fd)
	}
}

// clients are the local addresses of sockets.
func (k *kit) clients(fds []int) []netip.AddrPort {
	all := make([]netip.AddrPort, len(fds))
	for i, fd := range fds {
		var name address
		getsockname(fd, &name)
		all[i] = name.addrPort()
		if all[i].Addr().IsUnspecified() {
			loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
			if k.family == ipv6 {
				loopback = netip.IPv6Loopback()
			}
			all[i] = netip.AddrPortFrom(loopback, all[i].Port())
		}
	}
	return all
}

// receive has datagrams sent to the sockets, one to each at a time, and measures what it takes to
// receive them.
func (k *kit) receive(work string, fds []int, clients []netip.AddrPort, from func(i int) netip.Addr) cost {
	var source address
	var between time.Duration
	c := k.measureLess(work, busyTimes*len(fds), &between, func() {
		for range busyTimes {
			start := time.Now()
			for i := range fds {
				k.servers.answer(k.family, from(i), clients[i])
			}
			between += time.Since(start)
			for _, fd := range fds {
				if !receive(fd, &source) {
					panic(fmt.Errorf("%s: a datagram was lost", work))
				}
			}
		}
	}, k.hook("recvmsg"))
	return c
}

// ordinary plays sockets that have nothing to do with services: unused ones, and connected ones.
func ordinary(name string, protocol int) scene {
	return func(k *kit) {
		work := func(s string) string { return fmt.Sprintf("%s, %s %s", s, name, k.family.name) }
		fds := openSockets(k.family.domain, protocol, batchSockets)
		k.measure(work("release of an unused socket"), len(fds), func() {
			for _, fd := range fds {
				closeSocket(fd)
			}
		}, "release")

		fds = openSockets(k.family.domain, protocol, batchSockets)
		to := newAddress(k.family.stranger())
		k.measure(work("connect to no service"), len(fds), func() {
			for _, fd := range fds {
				connect(fd, to)
			}
		}, k.hook("connect"))
		k.measure(work("release of an ordinary connected socket"), len(fds), func() {
			for _, fd := range fds {
				closeSocket(fd)
			}
		}, "release")
		if protocol == unix.IPPROTO_TCP {
			k.servers.hangUp(k.family)
		}
	}
}
