// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"iter"
	"slices"

	"github.com/revsk/revsk/revnat"
)

// sockets are those of the records that a dump has left in the buffer. It returns false if some tuples may have been
// missed; then nothing was returned. For room see [record.whole].
func (p *dumpPrograms) sockets(all []dumped, to *room) (iter.Seq2[Socket, error], bool, error) {
	if p.whole() {
		return func(yield func(Socket, error) bool) {
			for _, r := range wholeRecords(p.buffer, all) {
				if !r.holds() {
					continue
				}
				if s, err := r.whole(to); !yield(s, err) || err != nil {
					return
				}
			}
		}, true, nil
	}
	return joinParts(p.buffer, all)
}

// wholeRecords are those that have all that a socket holds, and where in the buffer they begin. One that has sent for the first time between two passes is in
// both, and so is one whose table has become a large one: it is returned once.
func wholeRecords(buffer []byte, all []dumped) iter.Seq2[int, record] {
	return func(yield func(int, record) bool) {
		before := make([]uint64, 0, all[0].end/leastRecord) // the ids of the passes before
		from := 0
		for i, d := range all {
			slices.Sort(before)
			sorted := before
			for r := range records(buffer[from:d.end]) {
				at := from
				from += len(r)
				if _, twice := slices.BinarySearch(sorted, r.id()); twice {
					continue
				}
				if i+1 < len(all) {
					before = append(before, r.id())
				}
				if !yield(at, r) {
					return
				}
			}
		}
	}
}

// joinParts makes one socket of its records of all maps. It keeps all of them in memory.
func joinParts(buffer []byte, all []dumped) (iter.Seq2[Socket, error], bool, error) {
	byID := make(map[uint64]*Socket)
	versions := make(map[uint64]uint16)
	from := 0
	for _, d := range all {
		for r := range records(buffer[from:d.end]) {
			switch {
			case d.content == ofBefore:
				versions[r.id()] = r.tableVersion()
				continue
			case d.content == ofPeers:
				// What has moved from one table to another in between may have been missed.
				if v, ok := versions[r.id()]; ok && (v != r.tableVersion() || v%2 != 0) {
					return nil, false, nil
				}
			}
			if err := addPart(byID, d.content, r); err != nil {
				return nil, false, err
			}
		}
		from = d.end
	}
	return func(yield func(Socket, error) bool) {
		for _, s := range byID {
			slices.SortFunc(s.Peers, comparePeers)
			if (s.Conn != nil || s.Former != nil || len(s.Peers) > 0) && !yield(*s, nil) {
				return
			}
		}
	}, true, nil
}

func addPart(byID map[uint64]*Socket, c content, r record) (err error) {
	now := new(Socket)
	r.socket(now)
	s := byID[r.id()]
	if s == nil || !same(s, now) {
		s = now
		byID[r.id()] = s
	}
	var tuples []revnat.Tuple
	switch c {
	case ofConn:
		s.Conn, err = r.tuple(0, nil)
	case ofFormer:
		s.Former, err = r.tuple(0, nil)
	default:
		tuples, err = r.tuples(0)
		s.Peers = append(s.Peers, tuples...)
	}
	if s.Cookie == 0 {
		s.Cookie = now.Cookie
	}
	return err
}

// same says whether two records with the same address are of the same socket. The maps are read one
// after the other, and the memory of a socket that is gone is used again.
func same(a, b *Socket) bool {
	return a.NetNS.Inode == b.NetNS.Inode && a.Protocol == b.Protocol && a.Family == b.Family &&
		(a.Cookie == b.Cookie || a.Cookie == 0 || b.Cookie == 0)
}
