// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// charged is what the kernel has charged sockets for that have sent to so many services, each to them all.
type charged struct {
	Variant string  `json:"variant"`
	Peers   int     `json:"peers"`
	Mean    float64 `json:"bytes_mean"` // of the sockets: a table grows by chance, as its peers' hashes fall
	Most    uint32  `json:"bytes_most"`
	Entry   float64 `json:"hash_bytes_per_entry"` // of the hash, which has its entries from the start
}

const (
	chargedSockets = 16
	// skMeminfoOptmem is the place of the memory for options, which storage is charged to, in SO_MEMINFO.
	skMeminfoOptmem = 6
	skMeminfoVars   = 9
)

var chargedPeers = []int{1, 3, 4, 8, 16, 64, 160, 1000}

// benchOptmem asks the kernel what it has charged sockets for, by the number of their peers.
func benchOptmem(ctx context.Context, b *bench) error {
	for _, v := range b.variants {
		if v.dp == nil || v.name == legacyEmpty || v.name == legacyFull || v.name == dual || v.name == mirror {
			continue
		}
		hash := v.hash(ipv4)
		bytes, err := mapMemory(hash)
		if err != nil {
			return err
		}
		if err := v.prepare(ipv4, 0); err != nil {
			return err
		}
		if err := b.enter(v); err != nil {
			return err
		}
		k := &kit{bench: b, variant: v, family: ipv4}
		for _, n := range chargedPeers {
			if err := ctx.Err(); err != nil {
				return err
			}
			c := charged{Variant: v.name, Peers: n, Entry: float64(bytes) / float64(hash.MaxEntries())}
			if err := k.try(func(k *kit) { k.charge(&c) }); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			b.report.Charged = append(b.report.Charged, c)
		}
	}
	return nil
}

func (k *kit) charge(c *charged) {
	k.inserts(chargedSockets * c.Peers)
	to := make([]*address, c.Peers)
	for i := range to {
		to[i] = k.target(i)
	}
	var sum float64
	for range chargedSockets {
		fd := openSocket(k.family.domain, unix.IPPROTO_UDP)
		for i := range to {
			sendTo(fd, to[i])
		}
		n := optmem(fd)
		sum += float64(n)
		c.Most = max(c.Most, n)
		closeSocket(fd)
		k.servers.drain(k.family)
	}
	c.Mean = sum / chargedSockets
}

func optmem(fd int) uint32 {
	var info [skMeminfoVars]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		panic(fmt.Errorf("getsockopt(SO_MEMINFO): %w", errno))
	}
	return info[skMeminfoOptmem]
}
