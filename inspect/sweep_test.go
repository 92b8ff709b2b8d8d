// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

func TestSweepRemovesWhatSocketsLeftThatClosedWithoutHooks(t *testing.T) {
	d := newDatapath(t)
	services := d.addServices(t, 0, 10, false)
	var gone []*testSocket
	for range 3 {
		s := open(t, IPv4, lbmap.ProtocolUDP)
		s.send(t, services...)
		gone = append(gone, s)
	}
	var living *testSocket
	var want []Socket
	inNetNS(t, func() {
		living = open(t, IPv4, lbmap.ProtocolUDP)
		living.send(t, services...)
		want = append(want, living.expected(t, nil, services...))
	})
	const chain = 10 - revnat.Slots

	d.detach()
	for _, s := range gone {
		s.close()
	}
	waitForRCU(t)
	assert.Len(t, d.overflow(t), 4*chain)

	removed, err := OverflowSweep(t.Context(), d.Maps, SweepOptions{DryRun: true})
	require.NoError(t, err)
	assert.Equal(t, 3*chain, removed)
	assert.Len(t, d.overflow(t), 4*chain, "a dry run removes nothing")

	removed, err = OverflowSweep(t.Context(), d.Maps, SweepOptions{})
	require.NoError(t, err)
	assert.Equal(t, 3*chain, removed)
	got, err := Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assertSockets(t, want, got)

	removed, err = OverflowSweep(t.Context(), d.Maps, SweepOptions{})
	require.NoError(t, err)
	assert.Zero(t, removed)

	living.close()
	waitForRCU(t)
	removed, err = OverflowSweep(t.Context(), d.Maps, SweepOptions{})
	require.NoError(t, err)
	assert.Equal(t, chain, removed)
}

func TestSweepOfAnEmptyMapRemovesNothing(t *testing.T) {
	d := newDatapath(t)
	removed, err := OverflowSweep(t.Context(), d.Maps, SweepOptions{})
	require.NoError(t, err)
	assert.Zero(t, removed)
}

func TestSweepBesideTrafficRemovesNothingAlive(t *testing.T) {
	d := newDatapath(t)
	services := d.addServices(t, 0, 40, false)

	// A socket that lasts all the time.
	lasting := open(t, IPv4, lbmap.ProtocolUDP)
	lasting.send(t, services...)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var sockets atomic.Int64
	var traffic sync.WaitGroup
	for range 2 {
		traffic.Go(func() {
			for ctx.Err() == nil {
				assert.NoError(t, d.sendAndCheck(services))
				sockets.Add(1)
			}
		})
	}
	sweeps, total := 0, 0
	for ctx.Err() == nil {
		removed, err := OverflowSweep(t.Context(), d.Maps, SweepOptions{})
		require.NoError(t, err)
		sweeps++
		total += removed
	}
	traffic.Wait()
	t.Logf("%d sweeps beside %d sockets with chains", sweeps, sockets.Load())
	assert.Zero(t, total, "with hooks attached there is nothing to remove")

	got, err := Sockets(t.Context(), d.Maps, Options{})
	require.NoError(t, err)
	assertSockets(t, []Socket{lasting.expected(t, nil, services...)}, got)
}

// sendAndCheck sends to all services from a new socket, and says if a tuple is missing afterwards.
func (d *datapath) sendAndCheck(services []service) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s := &testSocket{fd: fd, family: IPv4}
	defer s.close()
	for range 3 {
		for _, svc := range services {
			if err := s.sendTo(svc.front); err != nil {
				return err
			}
		}
	}
	var v revnat.PeersValue
	if err := d.Peers.Lookup(int32(fd), &v); err != nil {
		return err
	}
	inSlots := v.Tuples()
	for _, svc := range services {
		if slices.ContainsFunc(inSlots, func(t revnat.Tuple) bool { return t.Peer == svc.backend }) {
			continue
		}
		key := revnat.OverflowKey{Cookie: v.Cookie, Peer: svc.backend}
		if err := d.Overflow.Lookup(key, new(revnat.OverflowValue)); err != nil {
			return fmt.Errorf("tuple for %v: %w", svc.front, err)
		}
	}
	return nil
}

func TestSweepReturnsItsErrors(t *testing.T) {
	d := newDatapath(t)
	for _, maps := range []Maps{{}, {Conn: d.Conn, Overflow: d.Overflow}, {Conn: d.Conn, Peers: d.Peers}} {
		_, err := OverflowSweep(t.Context(), maps, SweepOptions{})
		assert.ErrorIs(t, err, ErrNoMap)
	}

	services := d.addServices(t, 0, 10, false)
	open(t, IPv4, lbmap.ProtocolUDP).send(t, services...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	removed, err := OverflowSweep(ctx, d.Maps, SweepOptions{})
	assert.True(t, errors.Is(err, context.Canceled))
	assert.Zero(t, removed)
}

func (d *datapath) overflow(t testing.TB) []overflowEntry {
	t.Helper()
	entries, err := readOverflow(d.Overflow)
	require.NoError(t, err)
	return entries
}

// waitForRCU waits until the kernel has freed the storage of sockets that were closed, which it does
// after a grace period.
func waitForRCU(t testing.TB) {
	t.Helper()
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL
	for range 3 {
		_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
		require.Zero(t, errno)
	}
	time.Sleep(100 * time.Millisecond)
}
