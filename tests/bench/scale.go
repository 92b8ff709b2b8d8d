// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// liveCounts are how many sockets are alive, in each variant. Only so many of them are used: a process
// cannot have more.
var liveCounts = []int{1, 1000, 10000, 100000, 400000}

const usedSockets = 5000

// benchScale measures hooks beside many live sockets, all connected to services.
func benchScale(ctx context.Context, b *bench) (err error) {
	var crowds []*crowd
	defer func() {
		for _, c := range crowds {
			err = errors.Join(err, c.holders.kill())
			for _, fd := range c.own {
				closeSocket(fd)
			}
		}
	}()
	for _, name := range []string{floor, legacyFull, storage, foreign} {
		if v := b.variant(name); v != nil {
			crowds = append(crowds, &crowd{variant: v, holders: new(holders)})
		}
	}
	for _, n := range liveCounts {
		if n > *most {
			break
		}
		if err := b.scale(ctx, n, crowds); err != nil {
			return fmt.Errorf("%d sockets: %w", n, err)
		}
	}
	return nil
}

// crowd are the live sockets of a variant: some are this process's.
type crowd struct {
	*variant
	own     []int
	holders *holders
	held    int
}

// grow has more sockets opened, until there are n.
func (c *crowd) grow(b *bench, n int) error {
	if err := b.enter(c.variant); err != nil {
		return err
	}
	k := &kit{bench: b, variant: c.variant, family: ipv4}
	err := k.try(func(k *kit) {
		more := openSockets(unix.AF_INET, unix.IPPROTO_UDP, min(n, usedSockets)-len(c.own))
		for i, to := range k.targets(len(more)) {
			connect(more[i], to)
		}
		c.own = append(c.own, more...)
	})
	if err != nil {
		return err
	}
	more := n - len(c.own) - c.held
	c.held += more
	return c.holders.add(c.variant, more, false)
}

func (b *bench) scale(ctx context.Context, n int, crowds []*crowd) error {
	own := make(map[*variant][]int)
	var variants []*variant
	for _, c := range crowds {
		if err := c.grow(b, n); err != nil {
			return err
		}
		own[c.variant] = c.own
		variants = append(variants, c.variant)
	}
	r, err := b.play(ctx, max(3, *rounds/6), variants, func(k *kit) {
		if k.family != ipv4 {
			return
		}
		fds := own[k.variant]
		times := (usedSockets + len(fds) - 1) / len(fds)
		var peer address
		k.measure(fmt.Sprintf("getpeername, %d live sockets", n), times*len(fds), func() {
			for range times {
				for _, fd := range fds {
					getpeername(fd, &peer)
				}
			}
		}, k.hook("getpeername"))
		to := k.targets(batchSockets)
		k.measure(fmt.Sprintf("life of another socket, %d live sockets", n), batchSockets, func() {
			for i := range batchSockets {
				fd := openSocket(unix.AF_INET, unix.IPPROTO_UDP)
				connect(fd, to[i])
				getpeername(fd, &peer)
				closeSocket(fd)
			}
		}, k.hook("connect"), k.hook("getpeername"), "release")
	})
	if err != nil {
		return err
	}
	b.report.addResults("scale", r)
	return nil
}
