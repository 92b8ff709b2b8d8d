// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// peerCounts are how many peers a socket has: the slots, and what goes beyond them.
var peerCounts = []int{1, 4, 5, 16, 64, 160, 1000}

const (
	peerCalls = 2000 // sends and receives that are measured, at least
	peerBurst = 64   // datagrams that a socket has room for
)

// benchPeers measures sockets with many peers that send to all of them alike.
func benchPeers(ctx context.Context, b *bench) error {
	var scenes []scene
	for _, n := range peerCounts {
		scenes = append(scenes, manyPeers(n))
	}
	r, err := b.play(ctx, max(3, *rounds/3), b.variants, scenes...)
	if err != nil {
		return err
	}
	b.report.addResults("peers", r)
	return nil
}

func manyPeers(n int) scene {
	return func(k *kit) {
		k.inserts(n)
		fd := openSocket(k.family.domain, unix.IPPROTO_UDP)
		to := make([]*address, n)
		for i := range to {
			to[i] = k.target(i)
			sendTo(fd, to[i])
		}
		work := func(s string) string { return fmt.Sprintf("%s, %d peers, UDP %s", s, n, k.family.name) }

		times := (peerCalls + n - 1) / n
		sent := k.measure(work("send"), times*n, func() {
			for range times {
				for i := range to {
					sendTo(fd, to[i])
				}
			}
		}, k.hook("sendmsg"))
		k.servers.drain(k.family)

		client := k.clients([]int{fd})[0]
		backends := make([]netip.Addr, n)
		for i := range backends {
			backends[i] = k.family.backend(backendOf(i, fd)).Addr()
		}
		var source address
		var between time.Duration
		received := k.measureLess(work("receive"), times*n, &between, func() {
			for range times {
				for first := 0; first < n; first += peerBurst {
					start := time.Now()
					burst := backends[first:min(first+peerBurst, n)]
					for _, from := range burst {
						k.servers.answer(k.family, from, client)
					}
					between += time.Since(start)
					for range burst {
						if !receive(fd, &source) {
							panic(fmt.Errorf("a datagram was lost"))
						}
					}
				}
			}
		}, k.hook("recvmsg"))
		k.add(work("send and receive"), sent.hooks+received.hooks, sent.call+received.call)
		k.measure(work("close"), 1, func() { closeSocket(fd) }, "release")
	}
}

// benchContention measures the same work on both CPUs at once, and on one beside it.
func benchContention(ctx context.Context, b *bench) error {
	var scenes []scene
	for _, threads := range []int{1, 2} {
		scenes = append(scenes, lifeInThreads(threads), sendsInThreads(threads))
	}
	r, err := b.play(ctx, max(3, *rounds/2), b.variants, scenes...)
	if err != nil {
		return err
	}
	b.report.addResults("contention", r)
	return nil
}

// inThreads calls f in so many threads at once.
func (k *kit) inThreads(n int, f func(thread int)) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			errs[i] = k.try(func(*kit) { f(i) })
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			panic(err)
		}
	}
}

func lifeInThreads(threads int) scene {
	return func(k *kit) {
		k.inserts(threads * batchSockets)
		to := k.targets(batchSockets)
		k.measure(fmt.Sprintf("life of a connected socket, %d at once, UDP %s", threads, k.family.name), threads*batchSockets, func() {
			k.inThreads(threads, func(int) {
				var peer address
				for i := range batchSockets {
					fd := openSocket(k.family.domain, unix.IPPROTO_UDP)
					connect(fd, to[i])
					getpeername(fd, &peer)
					closeSocket(fd)
				}
			})
		}, k.hook("connect"), k.hook("getpeername"), "release")
	}
}

func sendsInThreads(threads int) scene {
	return func(k *kit) {
		k.inserts(threads * busySockets)
		to := k.targets(threads * busySockets)
		fds := openSockets(k.family.domain, unix.IPPROTO_UDP, threads*busySockets)
		for i, fd := range fds {
			sendTo(fd, to[i])
		}
		k.measure(fmt.Sprintf("send to a known service, %d at once, UDP %s", threads, k.family.name), busyTimes*len(fds), func() {
			k.inThreads(threads, func(thread int) {
				for range busyTimes {
					for i := thread * busySockets; i < (thread+1)*busySockets; i++ {
						sendTo(fds[i], to[i])
					}
				}
			})
		}, k.hook("sendmsg"))
		k.servers.drain(k.family)
		for _, fd := range fds {
			closeSocket(fd)
		}
	}
}
