// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"sync/atomic"
)

// Options of [Open] and [Sockets]. The zero value is what is wanted mostly.
type Options struct {
	// SkipOwners leaves Socket.Owners empty, which saves looking through all open files.
	SkipOwners bool
	// MostOwners is how many processes Socket.Owners has, at most: those with the lowest ids. It bounds the memory that processes
	// can take which share many sockets. 0: all.
	MostOwners int
	// NetNSDir is the directory with the names of network namespaces. Default: /run/netns.
	NetNSDir string
	// BufferSize is the size in bytes of the buffer between the kernel and this process, at least 256 KiB. Sockets are
	// read in parts that fit into it: the kernel goes through all sockets once for each, so that a smaller one takes
	// longer. Default: 16 MiB; at most 4 MiB where the kernel allows no more.
	BufferSize int
	// Reuse says that Conn and Former of a socket are looked at before the next one is asked for: memory for them is used
	// again.
	Reuse bool
}

// ErrInUse is returned by a [Reader] that is closed, or that is being read.
var ErrInUse = errors.New("reader is closed, or in use")

// Reader reads which sockets hold tuples, as often as one likes. Its programs are loaded once.
//
// It has one user at a time: another gets [ErrInUse].
type Reader struct {
	opts     Options
	programs *dumpPrograms
	room     *room  // nil: each socket has its own
	width    uint64 // of the parts that have fitted into the buffer last; 0: none has yet
	inUse    atomic.Bool
}

// Open loads the programs of a reader. The maps may be closed before it.
//
// Returns an error wrapping [ErrNotSupported] or [ErrNoMap], and one wrapping [ebpf.ErrMapIncompatible] for
// maps of another layout.
func Open(maps Maps, opts Options) (*Reader, error) {
	r, err := openReader(maps, opts, allVariants)
	if err != nil {
		return nil, fmt.Errorf("opening the reader of sockets: %w", err)
	}
	return r, nil
}

func openReader(maps Maps, opts Options, variants []variant) (*Reader, error) {
	if err := maps.hold(); err != nil {
		return nil, err
	}
	if opts.BufferSize <= 0 {
		opts.BufferSize = defaultBuffer
	}
	p, err := loadDump(maps, bufferFor(opts.BufferSize), variants)
	if err != nil {
		return nil, err
	}
	r := &Reader{opts: opts, programs: p}
	if opts.Reuse {
		r.room = new(room)
	}
	return r, nil
}

// Close frees what the reader has in the kernel. A reader that is nil or closed returns [ErrInUse], and so
// does one that is being read.
func (r *Reader) Close() error {
	if r == nil || !r.inUse.CompareAndSwap(false, true) {
		return ErrInUse // for ever, once closed
	}
	return r.programs.close()
}

// Sockets returns the sockets that hold a tuple, in all network namespaces, in no order. The sequence ends
// after an error.
//
// Memory does not grow with the number of sockets, but for owners: 8 bytes for each open file. Sockets
// are read in parts of some 100,000, chosen by their addresses; of a part that turns out to be too large
// nothing is returned, and it is read again in smaller parts.
//
// The hooks go on meanwhile, so this is no snapshot: sockets and tuples that come or go may be in it
// or not. A socket that lives all the time is returned once; but with more than 1,000,000 sockets one
// that closes may make it miss another. No tuple is half an old one and half a new one.
//
// Returns an error wrapping [ErrInUse], [ErrNotSupported], [ErrIncomplete], the context's error, or those of
// package revnat's decoders for maps of another layout.
func (r *Reader) Sockets(ctx context.Context, f Filter) iter.Seq2[Socket, error] {
	return func(yield func(Socket, error) bool) {
		if r == nil || !r.inUse.CompareAndSwap(false, true) {
			yield(Socket{}, ErrInUse)
			return
		}
		defer r.inUse.Store(false)
		if err := r.read(ctx, f, !r.opts.SkipOwners, func(s Socket) bool { return yield(s, nil) }); err != nil {
			yield(Socket{}, fmt.Errorf("listing sockets: %w", err))
		}
	}
}

// ConnectedBackends returns the backends that sockets are connected to through a service, each once, in no order. Memory
// grows with their number, not with that of sockets. It returns the errors of [Reader.Sockets].
func (r *Reader) ConnectedBackends(ctx context.Context) ([]Backend, error) {
	if r == nil || !r.inUse.CompareAndSwap(false, true) {
		return nil, ErrInUse
	}
	defer r.inUse.Store(false)
	found := make(BackendSet)
	err := r.read(ctx, Filter{Connected: true}, false, func(s Socket) bool {
		found[Backend{s.Connection().Peer, s.Protocol}] = struct{}{}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the backends of sockets: %w", err)
	}
	return slices.Collect(maps.Keys(found)), nil
}

// wholeRange is the width of a part that has all sockets.
const wholeRange = math.MaxUint32 + 1

// fitting is how wide a part can be if the records of p need so many bytes. It leaves some room for other sockets.
func (r *Reader) fitting(p part, bytes int) uint64 {
	room := uint64(len(r.programs.buffer) / 10 * 9)
	return min(max(1, p.width()*room/uint64(max(1, bytes))), wholeRange)
}

// firstWidth is that of the first part. If the machine has so many files open that all sockets may not fit by far, it is a smaller
// one, lest the kernel go through them in vain: how many of the files are sockets with tuples shows in that part.
func (r *Reader) firstWidth(f *Filter) uint64 {
	const record = leastRecord * 5 / 4 // some have sent
	if bytes := openFiles() * record; !f.asks() && bytes > 2*len(r.programs.buffer) {
		return r.fitting(part{0, math.MaxUint32}, bytes)
	}
	return wholeRange
}

// maxAttempts is how often a part is read anew, each time a smaller one.
const maxAttempts = 40

// read gives yield the sockets until that returns false.
func (r *Reader) read(ctx context.Context, f Filter, withOwners bool, yield func(Socket) bool) error {
	names, err := netnsNames(r.opts.NetNSDir)
	if err != nil {
		return err
	}
	if err := r.programs.want(&f); err != nil {
		return err
	}
	owners := ownerTable{most: r.opts.MostOwners}
	if r.width == 0 {
		r.width = r.firstWidth(&f)
	}
	next, attempts := uint64(0), 0
	for next <= math.MaxUint32 {
		now := part{uint32(next), uint32(min(next+r.width, math.MaxUint32+1) - 1)}
		dumped, more, err := r.programs.dump(ctx, now)
		if err != nil {
			return err
		}
		var sockets iter.Seq2[Socket, error]
		whole := more == 0
		if whole {
			if sockets, whole, err = r.programs.sockets(dumped, r.room); err != nil {
				return err
			}
		}
		if !whole {
			if attempts++; attempts > maxAttempts {
				return ErrIncomplete
			}
			if more < uint64(leastRecord) {
				r.width = max(1, now.width()/2) // records have changed while they were written
			} else {
				r.width = r.fitting(now, len(r.programs.buffer)+int(more))
			}
			continue
		}
		if attempts == 0 {
			r.width = max(r.width, r.fitting(now, dumped[len(dumped)-1].end))
		}
		attempts = 0
		next = uint64(now.last) + 1
		owners.expire()
		for s, err := range sockets {
			if err != nil {
				return err
			}
			s.NetNS.Name = names[s.NetNS.Inode]
			if !f.wants(&s) {
				continue
			}
			if withOwners {
				if s.Owners, err = owners.of(ctx, s.Inode); err != nil {
					return err
				}
			}
			if !yield(s) {
				return nil
			}
		}
	}
	return nil
}
