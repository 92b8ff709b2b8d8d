// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

// chainBound is CHAIN_BOUND of bpf/sock/revsk.c.
const chainBound = 4096

// The release program for kernels without bpf_loop deletes as much of a chain as its bound allows,
// and counts a release that leaves something.
func TestBoundedRelease(t *testing.T) {
	releaseBy(t, sock.SockProgRevskReleaseBounded)
	restoreCounters(t)
	for _, n := range []int{1, 2, chainBound - 1, chainBound, chainBound + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			before := readCounters(t)
			closeWithChain(t, n)
			left := max(0, n-chainBound)
			require.Equal(t, left, entries(t, sock.SockMapRevskOverflow))
			after := readCounters(t)
			require.EqualValues(t, n-left, after.OverflowRemoved-before.OverflowRemoved)
			require.EqualValues(t, min(left, 1), after.ReleaseTruncated-before.ReleaseTruncated)
			clearMap(t, sock.SockMapRevskOverflow)
		})
	}
}

func readCounters(t *testing.T) loader.Counters {
	t.Helper()
	c, err := datapath.Counters()
	require.NoError(t, err)
	return c
}

// restoreCounters puts the counters back at the end of a test whose tuples no hook has stored: what
// other tests and the switching of modes take from them would be wrong.
func restoreCounters(t *testing.T) {
	t.Helper()
	metrics := datapath.Map(sock.SockMapRevskMetrics)
	before := make([][]uint64, metrics.MaxEntries())
	for i := range before {
		require.NoError(t, metrics.Lookup(uint32(i), &before[i]))
	}
	t.Cleanup(func() {
		for i, perCPU := range before {
			require.NoError(t, metrics.Put(uint32(i), perCPU))
		}
	})
}

// releaseBy puts another version of the release program on its hook for the time of the test.
func releaseBy(t *testing.T, program string) {
	t.Helper()
	spec, err := sock.LoadSock()
	require.NoError(t, err)
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	replacements := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		own := datapath.Map(name)
		if own == nil {
			continue
		}
		info, err := own.Info()
		require.NoError(t, err)
		m.MaxEntries, m.Flags = own.MaxEntries(), info.Flags
		replacements[name] = own
	}
	progs, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	require.NoError(t, err)
	t.Cleanup(progs.Close)
	l, err := link.LoadPinnedLink("/sys/fs/bpf/revsk/links/"+sock.SockProgRevskRelease, nil)
	require.NoError(t, err)
	info, err := l.Info()
	require.NoError(t, err)
	usual, err := ebpf.NewProgramFromID(info.Program)
	require.NoError(t, err)
	require.NoError(t, l.Update(progs.Programs[program]))
	t.Cleanup(func() {
		require.NoError(t, l.Update(usual))
		require.NoError(t, usual.Close())
		require.NoError(t, l.Close())
	})
}

// closeWithChain closes a socket whose slots are full and whose chain has n tuples.
func closeWithChain(t *testing.T, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	require.NoError(t, err)
	peer := func(i int) netip.AddrPort {
		if i < 0 || i >= n {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 53)
	}
	tuple := func(peer netip.AddrPort) revnat.Tuple {
		return revnat.Tuple{Peer: peer, Service: netip.MustParseAddrPort("10.96.0.1:53")}
	}
	for i := range n {
		require.NoError(t, datapath.Map(sock.SockMapRevskOverflow).Put(
			revnat.OverflowKey{Cookie: cookie, Peer: peer(i)},
			revnat.OverflowValue{Tuple: tuple(peer(i)), Prev: peer(i - 1), Next: peer(i + 1)}))
	}
	value := revnat.PeersValue{ChainLen: uint32(n), Cookie: cookie, Head: peer(0)}
	for i := range value.Slots {
		value.Slots[i] = tuple(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}), 53))
	}
	require.NoError(t, datapath.Map(sock.SockMapRevskPeers).Put(uint32(fd), value))
}
