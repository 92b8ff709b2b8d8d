// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

// someSockets are sockets in no order, connected through services, of both families.
func someSockets(n int, six bool) []inspect.Socket {
	random := rand.New(rand.NewPCG(1, 2))
	addr := func(net byte) netip.AddrPort {
		a := netip.AddrFrom4([4]byte{10, net, byte(random.Uint32()), byte(random.Uint32())})
		if six {
			b := [16]byte{0xfd, net, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
			b[14], b[15] = byte(random.Uint32()), byte(random.Uint32())
			a = netip.AddrFrom16(b)
		}
		return netip.AddrPortFrom(a, uint16(1024+random.Uint32N(60000)))
	}
	all := make([]inspect.Socket, n)
	for i := range all {
		s := &all[i]
		s.Protocol, s.Family, s.State = lbmap.ProtocolUDP, inspect.IPv4, inspect.StateEstablished
		if i%3 == 0 {
			s.Protocol = lbmap.ProtocolTCP
		}
		s.Local, s.Peer = addr(0), addr(1)
		s.NetNS = inspect.NetNS{Inode: 4026531840 + uint64(random.Uint32N(5)), Cookie: 1}
		if s.NetNS.Inode%2 == 0 {
			s.NetNS.Name = fmt.Sprintf("ns-%d", 9-s.NetNS.Inode%10)
		}
		s.Cookie, s.Inode = random.Uint64N(1<<40), 1+uint64(random.Uint32())
		s.Conn = &revnat.Tuple{Peer: s.Peer, Service: addr(96), RevNATIndex: 7, BackendID: 9, Time: 100 * revnat.TimeUnit}
		s.Owners = []inspect.Process{{ID: 12345, Command: "some-program-15"}}
	}
	return all
}

func each(sockets []inspect.Socket) iter.Seq2[inspect.Socket, error] {
	return func(yield func(inspect.Socket, error) bool) {
		for _, s := range sockets {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func tableOf(t testing.TB, sockets []inspect.Socket, wide bool) []string {
	var text strings.Builder
	out := bufio.NewWriter(&text)
	require.NoError(t, printSockets(out, each(sockets), 200*revnat.TimeUnit, &inspect.Filter{}, wide))
	require.NoError(t, out.Flush())
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}

func TestATableOfSocketsHasThemInTheirOrder(t *testing.T) {
	sockets := append(someSockets(300, false), someSockets(300, true)...)
	lines := tableOf(t, sockets, true)
	require.Len(t, lines, 1+len(sockets))
	for i, s := range sockets {
		require.Contains(t, lines[1+i], s.Local.String())
		require.Contains(t, lines[1+i], fmt.Sprint(s.Cookie))
	}
}

func TestATableOfSocketsIsNotWiderThan120(t *testing.T) {
	for _, six := range []bool{false, true} {
		sockets := someSockets(50, six)
		sockets[0].Owners = slices.Repeat(sockets[0].Owners, 40)
		sockets[1].Owners = []inspect.Process{{ID: 4194304, Command: strings.Repeat("ä", 300)}}
		lines := tableOf(t, sockets, false)
		require.Equal(t, map[bool]int{false: 51, true: 102}[six], len(lines))
		for _, line := range lines {
			require.LessOrEqual(t, utf8.RuneCountInString(line), tableWidth, line)
		}
		all := strings.Join(lines, "\n")
		require.Contains(t, all, "12345/some-program-15")
		require.Contains(t, all, "…")
		for _, s := range sockets {
			require.Contains(t, all, s.Conn.Service.String())
			require.Contains(t, all, s.Conn.Peer.String())
		}
		require.Contains(t, strings.Join(tableOf(t, sockets, true), "\n"), strings.Repeat("ä", 300))
	}
}

func BenchmarkTableOfSockets(b *testing.B) {
	sockets := someSockets(10000, false)
	for b.Loop() {
		require.Len(b, tableOf(b, sockets, false), 10001)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(sockets)), "ns/socket")
}
