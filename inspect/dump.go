// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/revnat"
)

// Sizes in bytes of the ring buffer. The least has room for the largest socket.
const (
	defaultBuffer = 8 << 20
	minBuffer     = 256 << 10
	maxBuffer     = 1 << 30
)

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

// dumped is what the programs emitted of one part of the sockets.
type dumped struct {
	conn, former, peers, tables recordList
	// before is as peers, read before tables: what has moved from one table to another in between may have
	// been missed.
	before recordList
}

func (d *dumped) reset() {
	for _, l := range []*recordList{&d.conn, &d.former, &d.peers, &d.tables, &d.before} {
		l.reset()
	}
}

// size is about that of the records in a ring buffer.
func (d *dumped) size() (n int) {
	for _, l := range []*recordList{&d.conn, &d.former, &d.peers, &d.tables, &d.before} {
		n += len(l.data) + len(l.sizes)*ringOverhead
	}
	return n
}

// moved says whether a socket has tuples that may have been missed.
func (d *dumped) moved() bool {
	version := func(r record) uint32 { return binary.NativeEndian.Uint32(r.value[152:156]) }
	versions := make(map[uint64]uint32)
	for r := range d.before.records() {
		versions[r.id()] = version(r)
	}
	for r := range d.peers.records() {
		now := version(r)
		if v, ok := versions[r.id()]; ok && (v != now || v%2 != 0) {
			return true
		}
	}
	return false
}

// bufferFor returns the size of a ring buffer that has room for n bytes, if such sizes are allowed.
func bufferFor(n int) int {
	n = min(max(n, os.Getpagesize()), maxBuffer)
	return 1 << bits.Len(uint(n-1))
}

// dumpPrograms is one variant of the programs, and their ring buffer.
type dumpPrograms struct {
	*ebpf.Collection
	variant
	ring *ringbuf.Reader
	// passes are what is to be run, one after the other.
	passes []pass
}

// pass is a run of a program over a map.
type pass struct {
	iter *link.Iter
	list func(d *dumped, size int) *recordList
	// size is that of the records. 0: they have several.
	size int
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
			p := &dumpPrograms{Collection: coll, variant: v}
			if err := p.attach(maps); err != nil {
				return nil, errors.Join(err, p.close())
			}
			return p, nil
		}
		if verifier := new(ebpf.VerifierError); !errors.As(err, &verifier) {
			return nil, loadError(fmt.Errorf("loading iterators: %w", err))
		}
		refused = append(refused, err)
	}
	return nil, loadError(fmt.Errorf("loading iterators: %w", errors.Join(refused...)))
}

// attach makes the passes.
func (p *dumpPrograms) attach(maps Maps) (err error) {
	add := func(program string, m *ebpf.Map, size int, list func(d *dumped, size int) *recordList) {
		if err != nil {
			return
		}
		var it *link.Iter
		if it, err = bpfiter.Attach(p.Programs[program], m); err == nil {
			p.passes = append(p.passes, pass{it, list, size})
		}
	}
	const peersSize = socketSize + revnat.PeersValueSize
	add(p.conn, maps.Conn, socketSize+revnat.ConnValueSize, func(d *dumped, _ int) *recordList { return &d.conn })
	add(p.former, maps.Former, socketSize+revnat.FormerValueSize, func(d *dumped, _ int) *recordList { return &d.former })
	if len(p.tables) > 0 {
		add(p.peers, maps.Peers, peersSize, func(d *dumped, _ int) *recordList { return &d.before })
		for i, t := range revnat.TableMaps() {
			size := socketSize + t.Tuples()*revnat.TupleSize
			add(p.tables[t.Class-1], maps.Tables[i], size, func(d *dumped, _ int) *recordList { return &d.tables })
		}
		add(p.peers, maps.Peers, peersSize, func(d *dumped, _ int) *recordList { return &d.peers })
	} else {
		add(p.peers, maps.Peers, 0, func(d *dumped, size int) *recordList {
			if size == peersSize {
				return &d.peers
			}
			return &d.tables
		})
	}
	if err != nil {
		return loadError(err)
	}
	if p.ring, err = ringbuf.NewReader(p.Maps[programs.DumpMapRevskRecords]); err != nil {
		return fmt.Errorf("opening ring buffer: %w", err)
	}
	return p.want(everySocket, Filter{})
}

func (p *dumpPrograms) close() error {
	var errs []error
	for _, pass := range p.passes {
		errs = append(errs, pass.iter.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.Close())
	}
	p.Collection.Close()
	return errors.Join(errs...)
}

// part is some of the sockets: those whose address has a hash from first to last.
type part struct{ first, last uint32 }

var everySocket = part{0, math.MaxUint32}

// want says which sockets the programs are to emit.
func (p *dumpPrograms) want(sockets part, f Filter) error {
	for name, value := range map[string]any{
		programs.DumpVarRevskPartFirst:      sockets.first,
		programs.DumpVarRevskPartLast:       sockets.last,
		programs.DumpVarRevskWantedNetns:    uint32(f.NetNS),
		programs.DumpVarRevskWantedProtocol: uint16(f.Protocol),
		programs.DumpVarRevskRecordsLost:    uint64(0),
		programs.DumpVarRevskRecordsTorn:    uint64(0),
	} {
		if err := p.Variables[name].Set(value); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return nil
}

// dump runs all passes over the sockets that are wanted, which replaces what d has. If smaller is more than 1
// records are missing, and a part that is so many times smaller would do.
func (p *dumpPrograms) dump(ctx context.Context, d *dumped) (smaller int, err error) {
	d.reset()
	for _, pass := range p.passes {
		records, err := p.run(ctx, pass, d)
		if err != nil {
			return 0, err
		}
		var lost, torn uint64
		err = errors.Join(p.Variables[programs.DumpVarRevskRecordsLost].Get(&lost), p.Variables[programs.DumpVarRevskRecordsTorn].Get(&torn))
		if err != nil {
			return 0, fmt.Errorf("reading how many records were lost: %w", err)
		}
		switch {
		case lost > 0:
			return 2 + int(lost)/max(1, records), nil
		case torn > 0:
			return 2, nil
		}
	}
	if d.moved() {
		return 2, nil
	}
	return 1, nil
}

// run runs a pass, and returns how many records it has emitted.
func (p *dumpPrograms) run(ctx context.Context, pass pass, d *dumped) (records int, err error) {
	_, runErr := bpfiter.Run(ctx, pass.iter)
	// What has been emitted is to be read in any case, lest the next one finds it.
	if err := p.ring.Flush(); err != nil {
		return 0, errors.Join(runErr, fmt.Errorf("reading ring buffer: %w", err))
	}
	for r := new(ringbuf.Record); ; records++ {
		err := p.ring.ReadInto(r)
		if errors.Is(err, ringbuf.ErrFlushed) {
			return records, loadError(runErr)
		}
		size := len(r.RawSample)
		if err == nil && pass.size != 0 && size != pass.size {
			err = fmt.Errorf("record of %d bytes, not %d", size, pass.size)
		}
		if err != nil {
			return records, errors.Join(runErr, fmt.Errorf("reading ring buffer: %w", err))
		}
		pass.list(d, size).add(r.RawSample)
	}
}
