// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"os"
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
}

// allVariants has the best one first.
var (
	lockedVariant   = variant{programs.DumpProgDumpConn, programs.DumpProgDumpFormer, programs.DumpProgDumpPeers}
	unlockedVariant = variant{programs.DumpProgDumpConnUnlocked, programs.DumpProgDumpFormerUnlocked, programs.DumpProgDumpPeersUnlocked}
	allVariants     = []variant{lockedVariant, unlockedVariant}
)

// dumped is what the programs emitted.
type dumped struct {
	conn, former, peers recordList
}

// recordList is records of one size, one after the other.
type recordList struct {
	data []byte
	size int
}

type record struct {
	socket []byte // struct revsk_socket
	value  []byte
}

func (l recordList) len() int { return len(l.data) / l.size }

func (l recordList) records() iter.Seq[record] {
	return func(yield func(record) bool) {
		for at := 0; at < len(l.data); at += l.size {
			r := l.data[at : at+l.size]
			if !yield(record{r[:socketSize], r[socketSize:]}) {
				return
			}
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

	d = &dumped{
		conn:   recordList{size: socketSize + revnat.ConnValueSize},
		former: recordList{size: socketSize + revnat.FormerValueSize},
		peers:  recordList{size: socketSize + revnat.PeersValueSize},
	}
	for _, pass := range []struct {
		prog    *ebpf.Program
		m       *ebpf.Map
		records *recordList
	}{
		{p.Programs[p.conn], maps.Conn, &d.conn},
		{p.Programs[p.former], maps.Former, &d.former},
		{p.Programs[p.peers], maps.Peers, &d.peers},
	} {
		if err := p.run(ctx, pass.prog, pass.m, pass.records); err != nil {
			return nil, 0, err
		}
		var lost uint64
		if err := p.Variables[programs.DumpVarRevskRecordsLost].Get(&lost); err != nil {
			return nil, 0, fmt.Errorf("reading how many records were lost: %w", err)
		}
		if lost > 0 {
			return nil, (pass.records.len() + int(lost)) * (pass.records.size + ringOverhead), nil
		}
	}
	return d, 0, nil
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
			if name != v.conn && name != v.former && name != v.peers {
				delete(spec.Programs, name)
			}
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			MapReplacements: map[string]*ebpf.Map{
				programs.DumpMapRevskConn:   maps.Conn,
				programs.DumpMapRevskFormer: maps.Former,
				programs.DumpMapRevskPeers:  maps.Peers,
			},
		})
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

// run iterates over the storage in a map and appends what the program emits to into. The ring buffer
// is emptied meanwhile, so it rarely has to hold everything.
func (p *dumpPrograms) run(ctx context.Context, prog *ebpf.Program, m *ebpf.Map, into *recordList) error {
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
		if err == nil && len(r.RawSample) != into.size {
			err = fmt.Errorf("record of %d bytes, not %d", len(r.RawSample), into.size)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("reading ring buffer: %w", err), <-done)
		}
		into.data = append(into.data, r.RawSample...)
	}
}
