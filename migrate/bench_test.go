// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

const benchEntries = 10000

func someEntries() []*entry {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]*entry, benchEntries)
	for i := range all {
		all[i] = &entry{key: keyOf(random.Uint64(), backend), value: valueOf(front, uint16(i%1000))}
	}
	return all
}

func perEntry(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchEntries), "ns/entry")
}

func BenchmarkSortBySocket(b *testing.B) {
	entries := someEntries()
	shuffled := make([]*entry, len(entries))
	for b.Loop() {
		copy(shuffled, entries)
		bySocket(shuffled)
	}
	perEntry(b)
}

func BenchmarkMatchTuples(b *testing.B) {
	entries := someEntries()
	x := bySocket(entries)
	s := inspect.Socket{Conn: &revnat.Tuple{Peer: backend, Service: front, RevNATIndex: 1}}
	for b.Loop() {
		for _, e := range entries {
			s.Cookie = e.key.Cookie
			for t := range tuples(&s) {
				key, _ := ofTuple(s.Cookie, t)
				if x.find(&key) != e {
					b.Fatal("another entry")
				}
			}
		}
	}
	perEntry(b)
}

// Of a hundred tuples the hash lacks one, and has another service for one.
func BenchmarkCompare(b *testing.B) {
	entries := someEntries()
	for b.Loop() {
		c := newComparison(len(entries))
		for _, e := range entries {
			c.held(e.key, e.value)
		}
		for i, e := range entries {
			switch i % 100 {
			case 0:
			case 1:
				c.says(e.key, hashValue{})
			default:
				c.says(e.key, e.value)
			}
		}
		if c.tuples != benchEntries || len(c.missing) != benchEntries/100 || len(c.differs) != benchEntries/100 {
			b.Fatal("another comparison")
		}
	}
	perEntry(b)
}

func BenchmarkPlan(b *testing.B) {
	entries := someEntries()
	seen := []sighting{
		{seen: true, protocol: lbmap.ProtocolUDP, remote: backend},
		{seen: true, protocol: lbmap.ProtocolTCP, remote: netip.MustParseAddrPort("10.9.9.9:9")},
		{},
	}
	s := services{1: {{Frontend: lbmap.Frontend{AddrPort: front}, RevNat: 1, Backends: make([]lbmap.Backend, 1)}}}
	for b.Loop() {
		stale := s.cached()
		for i, e := range entries {
			e.stale = stale.stale(e.value)
			e.judgeSeen(seen[i%len(seen)])
		}
		if countResults(entries).Leaked == 0 {
			b.Fatal("nothing is leaked")
		}
		liveCounts(entries)
		leakCounts(entries)
	}
	perEntry(b)
}
