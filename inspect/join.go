// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"iter"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/revnat"
)

// sockets are those of the records that a dump has left in the buffer. It returns false if some tuples may have been
// missed; then nothing was returned.
func (p *dumpPrograms) sockets(all []dumped) (iter.Seq2[Socket, error], bool, error) {
	if p.whole() {
		return wholeSockets(p.buffer, all), true, nil
	}
	return joinParts(p.buffer, all)
}

// wholeSockets reads records that have all that a socket holds. One that has sent for the first time between the two
// passes is in both.
func wholeSockets(buffer *ebpf.Memory, all []dumped) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		var before []uint64 // the ids of the first pass
		from := int64(0)
		for _, d := range all {
			if d.content == ofPeers {
				slices.Sort(before)
			}
			for r, err := range records(buffer, from, d.end) {
				var s Socket
				if err == nil {
					s, err = r.whole()
				}
				if err != nil {
					yield(s, err)
					return
				}
				if d.content == ofConn {
					before = append(before, r.id())
				} else if _, twice := slices.BinarySearch(before, r.id()); twice {
					continue
				}
				if (s.Conn != nil || s.Former != nil || len(s.Peers) > 0) && !yield(s, nil) {
					return
				}
			}
			from = d.end
		}
	}
}

// joinParts makes one socket of its records of all maps. It keeps all of them in memory.
func joinParts(buffer *ebpf.Memory, all []dumped) (iter.Seq2[Socket, error], bool, error) {
	byID := make(map[uint64]*Socket)
	versions := make(map[uint64]uint16)
	from := int64(0)
	for _, d := range all {
		for r, err := range records(buffer, from, d.end) {
			if err != nil {
				return nil, false, err
			}
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
		s.Conn, err = r.tuple(0)
	case ofFormer:
		s.Former, err = r.tuple(0)
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
