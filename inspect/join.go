// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"iter"
	"slices"

	"github.com/revsk/revsk/revnat"
)

// parts are what a socket has in other maps than the first one in which it was found.
type parts struct {
	Socket
	found bool // in an earlier map, too
}

// join makes one socket of its records in all maps. Most sockets are in one: only those of the others
// are kept while it runs.
func join(d *dumped) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		others, err := joinOthers(d)
		if err != nil {
			yield(Socket{}, err)
			return
		}
		for r := range d.conn.records() {
			var s Socket
			r.decode(&s)
			if s.Conn, err = r.conn(); err != nil {
				yield(Socket{}, err)
				return
			}
			if o := others[r.id()]; o != nil && same(&s, &o.Socket) {
				o.found = true
				s.Former, s.Peers = o.Former, o.Peers
				if s.Cookie == 0 {
					s.Cookie = o.Cookie
				}
			}
			if s.Conn == nil && s.Former == nil && len(s.Peers) == 0 {
				continue
			}
			if !yield(s, nil) {
				return
			}
		}
		for _, o := range others {
			if !o.found && (o.Former != nil || len(o.Peers) > 0) && !yield(o.Socket, nil) {
				return
			}
		}
	}
}

// joinOthers is for all maps but revsk_conn, by the id of the socket.
func joinOthers(d *dumped) (map[uint64]*parts, error) {
	all := make(map[uint64]*parts)
	find := func(r record) *parts {
		p := new(parts)
		r.decode(&p.Socket)
		if known := all[r.id()]; known != nil && same(&known.Socket, &p.Socket) {
			return known
		}
		all[r.id()] = p
		return p
	}
	for r := range d.former.records() {
		tuple, err := r.former()
		if err != nil {
			return nil, err
		}
		find(r).Former = tuple
	}
	for list, decode := range map[*recordList]func(record) ([]revnat.Tuple, error){&d.peers: record.peers, &d.tables: record.table} {
		for r := range list.records() {
			tuples, err := decode(r)
			if err != nil {
				return nil, err
			}
			s := find(r)
			s.Peers = append(s.Peers, tuples...)
		}
	}
	for _, p := range all {
		slices.SortFunc(p.Peers, comparePeers)
	}
	return all, nil
}

// same says whether two records with the same address are of the same socket. The maps are read one
// after the other, and the memory of a socket that is gone is used again.
func same(a, b *Socket) bool {
	return a.NetNS.Inode == b.NetNS.Inode && a.Protocol == b.Protocol && a.Family == b.Family &&
		(a.Cookie == b.Cookie || a.Cookie == 0 || b.Cookie == 0)
}
