// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// ipcachePrefixes is the number of prefixes of a family in the ipcache.
const ipcachePrefixes = 20000

// somePod is the identity of something that is not a node.
const somePod = 40000

// prefixLengths are the lengths of a node's prefixes, in 100 of them: the addresses of pods and nodes, and
// networks of policies, whose lengths are distributed like those of routes on the internet.
var prefixLengths = map[*family][]struct{ bits, of100 int }{
	ipv4: {{32, 60}, {24, 24}, {23, 4}, {22, 4}, {21, 2}, {20, 2}, {19, 1}, {18, 1}, {17, 1}, {16, 1}},
	ipv6: {{128, 60}, {48, 19}, {32, 5}, {44, 4}, {40, 4}, {36, 3}, {29, 2}, {56, 2}, {64, 1}},
}

// fillIPCache writes what an agent knows of the addresses around it. The addresses that the benchmarks connect to
// are those of pods.
func fillIPCache(dp *loader.Datapath) error {
	m := dp.Map(lbmap.IPCacheMap)
	for _, f := range families {
		if err := f.fillIPCache(m); err != nil {
			return fmt.Errorf("writing the ipcache: %w", err)
		}
	}
	return nil
}

func (f *family) fillIPCache(m *ebpf.Map) error {
	put := func(a netip.Addr, bits int) error {
		prefix, err := a.Prefix(bits)
		if err != nil {
			return err
		}
		return m.Update(lbmap.IPCacheKey{Prefix: prefix}, lbmap.IPCacheValue{Identity: somePod}, ebpf.UpdateNoExist)
	}
	if err := put(f.plain, f.plain.BitLen()); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, uint64(f.domain)))
	for _, l := range prefixLengths[f] {
		for n := l.of100 * ipcachePrefixes / 100; n > 0; {
			switch err := put(f.ipcacheAddress(r, l.bits), l.bits); {
			case err == nil:
				n--
			case !errors.Is(err, ebpf.ErrKeyExist):
				return err
			}
		}
	}
	return nil
}

// ipcacheAddress is that of a pod on one of 100 nodes, in the network of the address that the benchmarks connect to,
// or one in the internet.
func (f *family) ipcacheAddress(r *rand.Rand, bits int) netip.Addr {
	a := f.plain.AsSlice()
	if bits == f.plain.BitLen() {
		binary.BigEndian.PutUint16(a[len(a)-2:], uint16(r.UintN(100)<<8|r.UintN(256)))
	} else {
		for i := range a {
			a[i] = byte(r.Uint32())
		}
		if f == ipv4 {
			a[0] = 1 + a[0]%222
		} else {
			a[0] = 0x20 | a[0]&0xf
		}
	}
	addr, _ := netip.AddrFromSlice(a)
	return addr
}
