// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"

	"github.com/revsk/revsk/lbmap"
)

// Sorted are sockets in the order of [Socket.Compare]. They are kept in memory as the kernel has written them, about 150
// bytes each; on Linux before 5.12, which cannot write whole sockets, they are kept as they are.
type Sorted struct {
	reader *Reader
	names  map[uint64]string // of network namespaces
	owners ownerTable
	at     []position
	// sockets are there instead of at.
	sockets []Socket
}

// position is where in the buffer of the reader a record begins. Records are in the order of the keys, those of the same key as
// compareRecords says.
type position struct {
	key uint64
	at  int
}

// Sorted reads all sockets at once. The reader is in use until the caller closes what it returns. It returns the errors of
// [Reader.Sockets].
func (r *Reader) Sorted(ctx context.Context, f Filter) (*Sorted, error) {
	if r == nil || !r.inUse.CompareAndSwap(false, true) {
		return nil, ErrInUse
	}
	s := &Sorted{reader: r, owners: ownerTable{most: r.opts.MostOwners}}
	if err := s.read(ctx, f); err != nil {
		s.Close()
		return nil, fmt.Errorf("listing sockets: %w", err)
	}
	return s, nil
}

// Close lets others use the reader. Closing nil, or twice, does nothing.
func (s *Sorted) Close() {
	if s != nil && s.reader != nil {
		s.reader.inUse.Store(false)
		s.reader = nil // whose buffer may change from now on
	}
}

// Sockets returns the sockets, as often as one likes. Like [Reader.Sockets] it ends after an error, which is [ErrInUse] if s
// is nil or closed.
func (s *Sorted) Sockets(ctx context.Context) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		if s == nil || s.reader == nil {
			yield(Socket{}, ErrInUse)
			return
		}
		for i := range s.sockets {
			if !yield(s.sockets[i], nil) {
				return
			}
		}
		for _, at := range s.at {
			socket, err := s.record(at).whole(s.reader.room)
			if err == nil && !s.reader.opts.SkipOwners {
				socket.Owners, err = s.owners.of(ctx, socket.Inode)
			}
			socket.NetNS.Name = s.names[socket.NetNS.Inode]
			if !yield(socket, err) || err != nil {
				return
			}
		}
	}
}

func (s *Sorted) record(p position) record {
	r := record(s.reader.programs.buffer[p.at:])
	return r[:r.size()]
}

// sortedAttempts is how often it is tried to read all sockets in one go.
const sortedAttempts = 5

func (s *Sorted) read(ctx context.Context, f Filter) (err error) {
	r := s.reader
	if s.names, err = netnsNames(r.opts.NetNSDir); err != nil {
		return err
	}
	for attempt := 0; r.programs.whole() && attempt < sortedAttempts; attempt++ {
		if err := r.programs.want(&f); err != nil {
			return err
		}
		all, more, err := r.programs.dump(ctx, part{0, math.MaxUint32})
		if err != nil {
			return err
		}
		if more == 0 {
			return s.index(all, &f)
		}
		grown, err := r.grow(int(more))
		if err != nil {
			return err
		}
		if !grown {
			break
		}
	}
	// Part by part.
	r.room = nil // all are kept
	err = r.read(ctx, f, !r.opts.SkipOwners, func(socket Socket) bool {
		s.sockets = append(s.sockets, socket)
		return true
	})
	slices.SortFunc(s.sockets, compareSockets)
	return err
}

// grow makes the buffer larger by as much. It returns false if the kernel does not allow it.
func (r *Reader) grow(by int) (bool, error) {
	if by < leastRecord {
		return true, nil // records have changed while they were written: the next attempt may find room for them
	}
	p, err := loadDump(r.programs.datapath(), bufferFor(len(r.programs.buffer)+by), []variant{r.programs.variant})
	if err != nil {
		return false, err
	}
	if len(p.buffer) <= len(r.programs.buffer) {
		return false, p.close()
	}
	before := r.programs
	r.programs = p
	return true, before.close()
}

// index sorts the records in the buffer.
func (s *Sorted) index(all []dumped, f *Filter) error {
	s.at = make([]position, 0, all[len(all)-1].end/leastRecord)
	ranks := make(map[uint32]uint32) // of namespaces, by inode
	for at, r := range wholeRecords(s.reader.programs.buffer, all) {
		if f.asks() {
			socket, err := r.whole(s.reader.room)
			if err != nil {
				return err
			}
			socket.NetNS.Name = s.names[socket.NetNS.Inode]
			if !f.wants(&socket) {
				continue
			}
		}
		if r.holds() {
			s.at = append(s.at, position{at: at})
			ranks[r.netns()] = 0
		}
	}
	inodes := slices.Collect(maps.Keys(ranks))
	slices.SortFunc(inodes, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(s.names[uint64(a)], s.names[uint64(b)]), cmp.Compare(a, b))
	})
	for i, inode := range inodes {
		ranks[inode] = uint32(i)
	}
	for i := range s.at {
		r := s.record(s.at[i])
		binary.NativeEndian.PutUint64(r[idAt:], uint64(ranks[r.netns()]))
		s.at[i].key = r.sortKey()
	}
	s.sort()
	return nil
}

func (s *Sorted) sort() {
	slices.SortFunc(s.at, func(a, b position) int {
		if c := cmp.Compare(a.key, b.key); c != 0 {
			return c
		}
		return compareRecords(s.record(a), s.record(b))
	})
}

// sortKey is in the order of compareRecords, as far as 64 bits tell records apart: 12 of the namespace's rank, 2 of the
// protocol, 1 of the family and 49 of the local address. What has no number of its own there goes after all others, with one key.
func (r record) sortKey() uint64 {
	const ranks = 1 << 12
	if r.id() >= ranks-1 {
		return math.MaxUint64
	}
	key := r.id() << 3
	switch protocol := lbmap.Protocol(binary.NativeEndian.Uint16(r[protocolAt:])); {
	case protocol > lbmap.ProtocolUDP:
		return (key | 2<<1) << 49
	case protocol > lbmap.ProtocolTCP:
		key |= 1 << 1
	}
	if Family(r[familyAt]) > IPv4 {
		key |= 1
	}
	if local := r[localAt:]; [12]byte(local) == mapped {
		port := binary.NativeEndian.Uint16(r[localPortAt:])
		return key<<49 | uint64(binary.BigEndian.Uint32(local[12:]))<<16 | uint64(port)
	}
	return key<<49 | 1<<48 | binary.BigEndian.Uint64(r[localAt:])>>16
}

// compareRecords is [Socket.Compare] of records that have the rank of their namespace instead of an id.
func compareRecords(a, b record) int {
	if c := cmp.Compare(a.id(), b.id()); c != 0 {
		return c
	}
	if c := cmp.Compare(binary.NativeEndian.Uint16(a[protocolAt:]), binary.NativeEndian.Uint16(b[protocolAt:])); c != 0 {
		return c
	}
	if c := cmp.Compare(a[familyAt], b[familyAt]); c != 0 {
		return c
	}
	if c := compareAddresses(a[localAt:], b[localAt:]); c != 0 {
		return c
	}
	if c := cmp.Compare(binary.NativeEndian.Uint16(a[localPortAt:]), binary.NativeEndian.Uint16(b[localPortAt:])); c != 0 {
		return c
	}
	aPort, bPort := binary.BigEndian.Uint16(a[peerPortAt:]), binary.BigEndian.Uint16(b[peerPortAt:])
	switch {
	case aPort == 0 && bPort != 0:
		return -1 // no peer
	case aPort != 0 && bPort == 0:
		return 1
	case aPort != 0:
		if c := cmp.Or(compareAddresses(a[peerAt:], b[peerAt:]), cmp.Compare(aPort, bPort)); c != 0 {
			return c
		}
	}
	return cmp.Or(
		cmp.Compare(binary.NativeEndian.Uint64(a[cookieAt:]), binary.NativeEndian.Uint64(b[cookieAt:])),
		cmp.Compare(binary.NativeEndian.Uint64(a[inodeAt:]), binary.NativeEndian.Uint64(b[inodeAt:])),
	)
}

var mapped = [12]byte{10: 0xff, 11: 0xff}

// compareAddresses orders IPv4 before IPv6.
func compareAddresses(a, b []byte) int {
	a4, b4 := [12]byte(a) == mapped, [12]byte(b) == mapped
	switch {
	case a4 && !b4:
		return -1
	case b4 && !a4:
		return 1
	}
	return bytes.Compare(a[:16], b[:16])
}
