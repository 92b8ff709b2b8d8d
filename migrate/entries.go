// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/revsk/revsk/lbmap"
)

// entry is an entry of the hash and what is known of its socket.
type entry struct {
	key   hashKey
	value hashValue
	place uint32 // among those that the migration has read, in the order of the hash
	stale bool
	held  bool // its socket holds a tuple for the backend

	result Result
	// Of the socket, if it was seen.
	protocol lbmap.Protocol
	family   uint16

	why    string // of an entry that is kept: for the report
	origin *entry // of a second look
}

// sighting is what the kernel says of a socket that was seen, but not visited by a program.
type sighting struct {
	seen     bool
	family   uint16
	protocol lbmap.Protocol
	remote   netip.AddrPort // the zero value: not connected, or not known
}

// socketEntries are entries by socket.
type socketEntries struct {
	entries []*entry   // by cookie, address and port
	cookies []uint64   // ascending
	first   []uint32   // by the number of a cookie: its first entry; and one more
	seen    []sighting // by number, see sightings
}

// bySocket sorts entries by socket.
func bySocket(entries []*entry) *socketEntries {
	slices.SortFunc(entries, func(a, b *entry) int { return compareKeys(&a.key, &b.key) })
	x := &socketEntries{entries: entries, cookies: make([]uint64, 0, len(entries)), first: make([]uint32, 0, len(entries)+1)}
	for i, e := range entries {
		if n := len(x.cookies); n == 0 || x.cookies[n-1] != e.key.Cookie {
			x.cookies = append(x.cookies, e.key.Cookie)
			x.first = append(x.first, uint32(i))
		}
	}
	x.first = append(x.first, uint32(len(entries)))
	return x
}

// sightings are where sockets were seen, by number. Mostly nobody asks.
func (x *socketEntries) sightings() []sighting {
	if x.seen == nil {
		x.seen = make([]sighting, len(x.cookies))
	}
	return x.seen
}

func compareKeys(a, b *hashKey) int {
	// Most sockets have one entry: addresses are compared only where it matters.
	if c := cmp.Compare(a.Cookie, b.Cookie); c != 0 {
		return c
	}
	return cmp.Or(bytes.Compare(a.Addr[:], b.Addr[:]), cmp.Compare(a.Port, b.Port))
}

// number is that of a socket; false if it has no entries.
func (x *socketEntries) number(cookie uint64) (int, bool) {
	return slices.BinarySearch(x.cookies, cookie)
}

// of are the entries of a socket.
func (x *socketEntries) of(number int) []*entry { return x.entries[x.first[number]:x.first[number+1]] }

// find returns the entry with a key, or nil.
func (x *socketEntries) find(key *hashKey) *entry {
	number, ok := x.number(key.Cookie)
	if !ok {
		return nil
	}
	for _, e := range x.of(number) {
		if e.key == *key {
			return e
		}
	}
	return nil
}

// has tells whether a socket has an entry for a backend.
func (x *socketEntries) has(number int, backend netip.AddrPort) bool {
	return slices.ContainsFunc(x.of(number), func(e *entry) bool { return e.key.backend() == backend })
}
