// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/revnat"
)

// Sizes in bytes of the buffer. The least has room for the largest socket. Kernels that allow no more than
// oldBuffer refuse larger ones.
const (
	defaultBuffer = 16 << 20
	oldBuffer     = 4<<20 - 4096
	minBuffer     = 256 << 10
	maxBuffer     = 1 << 30
)

// variant is which programs of the dump are loaded.
type variant struct {
	conn, former, peers string
	// large is for sockets that peers leaves out: it is loaded when there is one.
	large string
	// tables has a program for each class of table. Empty: each program emits all that a socket has.
	tables []string
}

// whole says that a record has all that its socket holds.
func (v variant) whole() bool { return len(v.tables) == 0 }

// allVariants has the best one first.
var (
	lockedVariant   = variant{conn: programs.DumpProgDumpConn, peers: programs.DumpProgDumpPeers, large: programs.DumpProgDumpLarge}
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

// bufferFor returns the size of a buffer that has room for n bytes, if such sizes are allowed.
func bufferFor(n int) int { return min(max(n, minBuffer), maxBuffer) &^ 7 }

// dumpPrograms is one variant of the programs, and their buffer.
type dumpPrograms struct {
	*ebpf.Collection
	variant
	buffer []byte
	// passes are what is to be run, one after the other, and then the one over large tables, if that is loaded.
	passes []pass
	large  *link.Iter
	// backends are those that the programs know as wanted.
	backends []programs.DumpRevskWantedBackend
}

// content is what the records of a pass have.
type content int

const (
	ofConn   content = iota // of a socket's revsk_conn; of the whole variant, sockets without revsk_peers
	ofFormer                // its revsk_former
	ofBefore                // its revsk_peers, read before tables
	ofTables                // one of its tables
	ofPeers                 // its revsk_peers; of the whole variant, all that the socket holds
)

// pass is a run of a program over a map.
type pass struct {
	iter *link.Iter
	content
}

// loadDump loads the first variant that the kernel accepts.
func loadDump(maps Maps, size int, variants []variant) (*dumpPrograms, error) {
	var refused []error
	for _, v := range variants {
		if !v.whole() {
			size = min(size, oldBuffer) // what is put together is kept in memory besides
		}
		p, err := loadVariant(maps, size, v)
		if errors.Is(err, unix.E2BIG) && size > oldBuffer {
			size = oldBuffer
			p, err = loadVariant(maps, size, v)
		}
		if err == nil {
			return p, nil
		}
		if verifier := new(ebpf.VerifierError); !errors.As(err, &verifier) {
			return nil, loadError(fmt.Errorf("loading iterators: %w", err))
		}
		refused = append(refused, err)
	}
	return nil, loadError(fmt.Errorf("loading iterators: %w", errors.Join(refused...)))
}

func loadVariant(maps Maps, size int, v variant) (*dumpPrograms, error) {
	coll, err := loadSome(v.has, size, maps.tuples())
	if err != nil {
		return nil, err
	}
	p := &dumpPrograms{Collection: coll, variant: v}
	if err := p.attach(maps, size); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// loadSome loads the programs that are wanted, with a buffer of this size.
func loadSome(wanted func(program string) bool, size int, replacements map[string]*ebpf.Map) (*ebpf.Collection, error) {
	spec, err := programs.LoadDump()
	if err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		if !wanted(name) {
			delete(spec.Programs, name)
		}
	}
	records := spec.Maps[programs.DumpMapRevskRecords]
	records.ValueSize, records.Value = uint32(size), nil
	if err := spec.Variables[programs.DumpVarCfgBufferSize].Set(uint64(size)); err != nil {
		return nil, err
	}
	return bpfiter.Load(spec, replacements)
}

// datapath are the maps that the programs read.
func (p *dumpPrograms) datapath() Maps {
	maps := Maps{
		Conn: p.Maps[programs.DumpMapRevskConn], Former: p.Maps[programs.DumpMapRevskFormer], Peers: p.Maps[programs.DumpMapRevskPeers],
	}
	for _, t := range revnat.TableMaps() {
		maps.Tables = append(maps.Tables, p.Maps[t.Name])
	}
	return maps
}

// loadLarge loads the program for large tables, which works on the same maps.
func (p *dumpPrograms) loadLarge() error {
	coll, err := loadSome(func(program string) bool { return program == p.variant.large }, len(p.buffer), p.Maps)
	if err != nil {
		return loadError(fmt.Errorf("loading the iterator over large tables: %w", err))
	}
	defer coll.Close()
	p.large, err = bpfiter.Attach(coll.Programs[p.variant.large], p.Maps[programs.DumpMapRevskPeers])
	return loadError(err)
}

// attach makes the passes.
func (p *dumpPrograms) attach(maps Maps, size int) (err error) {
	fd := p.Maps[programs.DumpMapRevskRecords].FD()
	if p.buffer, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mapping the buffer of records: %w", err)
	}
	add := func(program string, m *ebpf.Map, c content) {
		if err != nil {
			return
		}
		var it *link.Iter
		if it, err = bpfiter.Attach(p.Programs[program], m); err == nil {
			p.passes = append(p.passes, pass{it, c})
		}
	}
	add(p.conn, maps.Conn, ofConn)
	if !p.whole() {
		add(p.former, maps.Former, ofFormer)
		add(p.peers, maps.Peers, ofBefore)
		for i, t := range revnat.TableMaps() {
			add(p.tables[t.Class-1], maps.Tables[i], ofTables)
		}
	}
	add(p.peers, maps.Peers, ofPeers)
	return err
}

func (p *dumpPrograms) close() error {
	var errs []error
	for _, pass := range p.passes {
		errs = append(errs, pass.iter.Close())
	}
	if p.large != nil {
		errs = append(errs, p.large.Close())
	}
	if p.buffer != nil {
		errs = append(errs, unix.Munmap(p.buffer))
	}
	p.Collection.Close()
	return errors.Join(errs...)
}

// part is some of the sockets: those whose address has a hash from first to last.
type part struct{ first, last uint32 }

func (p part) width() uint64 { return uint64(p.last-p.first) + 1 }

// set sets variables of the programs.
func (p *dumpPrograms) set(values map[string]any) error {
	for name, value := range values {
		if err := p.Variables[name].Set(value); err != nil {
			return loadError(fmt.Errorf("setting %s: %w", name, err))
		}
	}
	return nil
}

// dumped is where in the buffer the records of a pass end.
type dumped struct {
	content
	end int
}

// dump runs all passes over the sockets of a part. If more is not 0, records are missing: those that there was no room for
// need so many more bytes, or at most that.
func (p *dumpPrograms) dump(ctx context.Context, sockets part) (all []dumped, more uint64, err error) {
	err = p.set(map[string]any{
		programs.DumpVarRevskPartFirst:   sockets.first,
		programs.DumpVarRevskPartLast:    sockets.last,
		programs.DumpVarRevskPosition:    uint64(0),
		programs.DumpVarRevskBytesLost:   uint64(0),
		programs.DumpVarRevskRecordsTorn: uint64(0),
		programs.DumpVarRevskLargeTables: uint64(0),
	})
	if err != nil {
		return nil, 0, err
	}
	for _, pass := range p.passes {
		var d dumped
		if d, more, err = p.run(ctx, pass); err != nil {
			return nil, 0, err
		}
		all = append(all, d)
	}
	if more > 0 {
		return nil, more, nil
	}
	var large uint64
	if err := p.Variables[programs.DumpVarRevskLargeTables].Get(&large); err != nil {
		return nil, 0, loadError(fmt.Errorf("reading whether there are large tables: %w", err))
	}
	if large == 0 {
		return all, 0, nil
	}
	if p.large == nil {
		if err := p.loadLarge(); err != nil {
			return nil, 0, err
		}
	}
	d, more, err := p.run(ctx, pass{p.large, ofPeers})
	return append(all, d), more, err
}

// run runs a pass. For more see dump.
func (p *dumpPrograms) run(ctx context.Context, pass pass) (d dumped, more uint64, err error) {
	if _, err := bpfiter.Run(ctx, pass.iter); err != nil {
		return d, 0, loadError(err)
	}
	var end, lost, torn uint64
	err = errors.Join(
		p.Variables[programs.DumpVarRevskPosition].Get(&end),
		p.Variables[programs.DumpVarRevskBytesLost].Get(&lost),
		p.Variables[programs.DumpVarRevskRecordsTorn].Get(&torn))
	if err != nil {
		return d, 0, loadError(fmt.Errorf("reading how many records there are: %w", err))
	}
	if torn > 0 {
		lost = max(lost, 1)
	}
	return dumped{pass.content, int(end)}, lost, nil
}
