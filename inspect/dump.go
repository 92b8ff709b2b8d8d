// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"os"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/revnat"
)

// Sizes in bytes of the ring buffer.
const (
	defaultBuffer = 4 << 20
	maxBuffer     = 1 << 30
)

// socketSize is the size of the part of a record that is about the socket itself.
const socketSize = int(unsafe.Sizeof(programs.DumpRevskSocket{}))

// ringOverhead is at least what the kernel adds to a record: 8 bytes, and up to 7 to align it.
const ringOverhead = 16

// variant is which programs of the dump are loaded.
type variant struct {
	conn, former, peers string
	// tables has a program for each class of table. Empty: the one for peers emits tables, too.
	tables []string
}

// allVariants has the best one first.
var (
	lockedVariant   = variant{conn: programs.DumpProgDumpConn, former: programs.DumpProgDumpFormer, peers: programs.DumpProgDumpPeers}
	unlockedVariant = variant{
		conn: programs.DumpProgDumpConnUnlocked, former: programs.DumpProgDumpFormerUnlocked, peers: programs.DumpProgDumpPeersUnlocked,
		tables: []string{
			programs.DumpProgDump512Unlocked, programs.DumpProgDump1kUnlocked, programs.DumpProgDump2kUnlocked,
			programs.DumpProgDump4kUnlocked, programs.DumpProgDump8kUnlocked,
		},
	}
	allVariants = []variant{lockedVariant, unlockedVariant}
)

func (v variant) has(program string) bool {
	return program == v.conn || program == v.former || program == v.peers || slices.Contains(v.tables, program)
}

// dumped is what the programs emitted.
type dumped struct {
	conn, former, peers, tables recordList
	// before is as peers, read before tables: what has moved from one table to another in between may have
	// been missed.
	before recordList
}

// size is that of all records in a ring buffer.
func (d *dumped) size() int {
	n := 0
	for _, l := range []*recordList{&d.conn, &d.former, &d.peers, &d.tables, &d.before} {
		n += len(l.data) + l.len()*ringOverhead
	}
	return n
}

// moved says whether a socket has tuples that may have been missed.
func (d *dumped) moved() bool {
	versions := make(map[string]uint32)
	version := func(r record) (id string, v uint32) {
		return string(r.socket[:8]), binary.NativeEndian.Uint32(r.value[152:156])
	}
	for r := range d.before.records() {
		id, v := version(r)
		versions[id] = v
	}
	for r := range d.peers.records() {
		id, now := version(r)
		if v, ok := versions[id]; ok && (v != now || v%2 != 0) {
			return true
		}
	}
	return false
}

// recordList is records, one after the other.
type recordList struct {
	data  []byte
	sizes []int
}

type record struct {
	socket []byte // struct revsk_socket
	value  []byte
}

func (l *recordList) len() int { return len(l.sizes) }

func (l *recordList) add(r []byte) {
	l.data = append(l.data, r...)
	l.sizes = append(l.sizes, len(r))
}

func (l *recordList) records() iter.Seq[record] {
	return func(yield func(record) bool) {
		data := l.data
		for _, size := range l.sizes {
			if !yield(record{data[:socketSize], data[socketSize:size]}) {
				return
			}
			data = data[size:]
		}
	}
}

// dump returns a record for every socket with storage in one of the maps. It starts again with a larger
// buffer for as long as the programs found no room for a record.
func dump(ctx context.Context, maps Maps, bufferSize int, variants []variant) (*dumped, error) {
	if bufferSize <= 0 {
		bufferSize = defaultBuffer
	}
	size := bufferFor(bufferSize)
	for {
		d, needed, err := dumpOnce(ctx, maps, size, variants)
		if err != nil || needed == 0 {
			return d, err
		}
		if size >= maxBuffer {
			return nil, fmt.Errorf("a buffer of %d bytes was too small: %w", size, ErrIncomplete)
		}
		size = bufferFor(max(needed, 2*size))
	}
}

// bufferFor returns the size of a ring buffer that has room for n bytes, if such sizes are allowed.
func bufferFor(n int) int {
	n = min(max(n, os.Getpagesize()), maxBuffer)
	return 1 << bits.Len(uint(n-1))
}

// dumpOnce dumps the maps by way of a buffer of the given size. If that was too small, needed is a
// size that would have done.
func dumpOnce(ctx context.Context, maps Maps, size int, variants []variant) (d *dumped, needed int, err error) {
	p, err := loadDump(maps, size, variants)
	if err != nil {
		return nil, 0, err
	}
	defer p.Close()

	d = &dumped{}
	for _, pass := range p.passes(maps, d) {
		if err := p.run(ctx, pass.prog, pass.m, pass.add); err != nil {
			return nil, 0, err
		}
		var lost uint64
		if err := p.Variables[programs.DumpVarRevskRecordsLost].Get(&lost); err != nil {
			return nil, 0, fmt.Errorf("reading how many records were lost: %w", err)
		}
		if lost > 0 {
			return nil, d.size() + int(lost)*(largestRecord+ringOverhead), nil
		}
	}
	if d.moved() {
		return nil, size, nil
	}
	return d, 0, nil
}

// largestRecord is the size of the record of the largest table.
const largestRecord = socketSize + revnat.TupleSize*4<<revnat.TableClasses

// pass is a run of a program over a map.
type pass struct {
	prog *ebpf.Program
	m    *ebpf.Map
	add  func(record []byte) error
}

// passes are what is to be run, one after the other.
func (p *dumpPrograms) passes(maps Maps, d *dumped) []pass {
	to := func(l *recordList, size int) func([]byte) error {
		return func(r []byte) error {
			if len(r) != size {
				return fmt.Errorf("record of %d bytes, not %d", len(r), size)
			}
			l.add(r)
			return nil
		}
	}
	const peersSize = socketSize + revnat.PeersValueSize
	all := []pass{
		{p.Programs[p.conn], maps.Conn, to(&d.conn, socketSize+revnat.ConnValueSize)},
		{p.Programs[p.former], maps.Former, to(&d.former, socketSize+revnat.FormerValueSize)},
	}
	if len(p.tables) == 0 {
		return append(all, pass{p.Programs[p.peers], maps.Peers, func(r []byte) error {
			if len(r) == peersSize {
				d.peers.add(r)
			} else {
				d.tables.add(r)
			}
			return nil
		}})
	}
	all = append(all, pass{p.Programs[p.peers], maps.Peers, to(&d.before, peersSize)})
	for i, t := range revnat.TableMaps() {
		all = append(all, pass{p.Programs[p.tables[t.Class-1]], maps.Tables[i], to(&d.tables, socketSize+t.Tuples()*revnat.TupleSize)})
	}
	return append(all, pass{p.Programs[p.peers], maps.Peers, to(&d.peers, peersSize)})
}

// dumpPrograms is one variant of the programs, and their ring buffer.
type dumpPrograms struct {
	*ebpf.Collection
	variant
}

// loadDump loads the first variant that the kernel accepts.
func loadDump(maps Maps, size int, variants []variant) (*dumpPrograms, error) {
	var refused []error
	for _, v := range variants {
		spec, err := programs.LoadDump()
		if err != nil {
			return nil, err
		}
		spec.Maps[programs.DumpMapRevskRecords].MaxEntries = uint32(size)
		for name := range spec.Programs {
			if !v.has(name) {
				delete(spec.Programs, name)
			}
		}
		replacements := map[string]*ebpf.Map{
			programs.DumpMapRevskConn:   maps.Conn,
			programs.DumpMapRevskFormer: maps.Former,
			programs.DumpMapRevskPeers:  maps.Peers,
		}
		for i, t := range revnat.TableMaps() {
			replacements[t.Name] = maps.Tables[i]
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
		if err == nil {
			return &dumpPrograms{coll, v}, nil
		}
		if verifier := new(ebpf.VerifierError); !errors.As(err, &verifier) {
			return nil, loadError(fmt.Errorf("loading iterators: %w", err))
		}
		refused = append(refused, err)
	}
	return nil, loadError(fmt.Errorf("loading iterators: %w", errors.Join(refused...)))
}

// run iterates over the storage in a map and gives add what the program emits. The ring buffer
// is emptied meanwhile, so it rarely has to hold everything.
func (p *dumpPrograms) run(ctx context.Context, prog *ebpf.Program, m *ebpf.Map, add func(record []byte) error) error {
	ring, err := ringbuf.NewReader(p.Maps[programs.DumpMapRevskRecords])
	if err != nil {
		return fmt.Errorf("opening ring buffer: %w", err)
	}
	defer ring.Close()

	done := make(chan error, 1)
	go func() {
		_, err := iterate(ctx, prog, m)
		// What has been emitted until here is still read.
		done <- errors.Join(err, ring.Flush())
	}()
	for r := new(ringbuf.Record); ; {
		err := ring.ReadInto(r)
		if errors.Is(err, ringbuf.ErrFlushed) {
			return <-done
		}
		if err == nil {
			err = add(r.RawSample)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("reading ring buffer: %w", err), <-done)
		}
	}
}
