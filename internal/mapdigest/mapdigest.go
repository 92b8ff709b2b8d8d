// SPDX-License-Identifier: Apache-2.0

// Package mapdigest tells whether the values of a hash have changed, without copying them to user space: a BPF
// program adds up a hash of each. Minimum kernel: Linux 5.9 with BTF.
package mapdigest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/revsk/revsk/internal/bpfiter"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../../bpf/lib" -target bpfel,bpfeb -go-package mapdigest -output-stem mapdigest -no-global-types -type revsk_digest Digest mapdigest.c

// Digest says what the values of a map are: as many, and the same, if it is equal. Which keys they have does not
// matter. That other values have the same digest has a chance of 1 in 2^64: with a change a second, once in 10^11 years.
type Digest struct {
	Sum, Count uint64
}

// Reader reads the digest of one map. It is not safe for use by several goroutines.
type Reader struct {
	digested *ebpf.Map
	sum      *ebpf.Map
	all      *ebpf.Program // nil: iter is used
	iter     *link.Iter
	filled   bool          // as of the last digest
	entries  *ebpf.Program // nil: the kernel has no count
}

// variant is which kind of program adds up a map.
type variant int

const (
	inOneCall variant = iota // needs Linux 5.14
	byIterator
)

// Open makes a reader of a hash with keys of 4 bytes and values of 12 or 24, as those of backends. The map may be closed
// before it.
func Open(m *ebpf.Map) (*Reader, error) {
	r, err := open(m, inOneCall)
	if err != nil {
		r, err = open(m, byIterator)
	}
	if err == nil {
		// A kernel without a count has the digest alone.
		var unused *ebpf.Map
		r.entries, unused, _ = load(DigestProgDigestEntries, r.digested)
		unused.Close()
	}
	return r, err
}

func open(m *ebpf.Map, v variant) (*Reader, error) {
	program := map[uint32][]string{
		12: {inOneCall: DigestProgDigestAll12, byIterator: DigestProgDigest12},
		24: {inOneCall: DigestProgDigestAll24, byIterator: DigestProgDigest24},
	}[m.ValueSize()]
	if m.KeySize() != 4 || program == nil {
		return nil, fmt.Errorf("digest of %v: keys of %d and values of %d bytes", m, m.KeySize(), m.ValueSize())
	}
	digested, err := m.Clone()
	if err != nil {
		return nil, err
	}
	r := &Reader{digested: digested}
	prog, sum, err := load(program[v], digested)
	if err == nil {
		r.sum = sum
		if v == inOneCall {
			r.all = prog
		} else {
			r.iter, err = bpfiter.Attach(prog, m)
			prog.Close()
		}
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// load loads one program. Digested is the map that it goes through, if it is not given one later.
func load(program string, digested *ebpf.Map) (*ebpf.Program, *ebpf.Map, error) {
	spec, err := LoadDigest()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	var replaced map[string]*ebpf.Map
	if digested == nil {
		delete(spec.Maps, DigestMapRevskDigested)
	} else {
		s := spec.Maps[DigestMapRevskDigested]
		s.ValueSize, s.MaxEntries, s.Flags = digested.ValueSize(), digested.MaxEntries(), digested.Flags()
		replaced = map[string]*ebpf.Map{DigestMapRevskDigested: digested}
	}
	coll, err := bpfiter.Load(spec, replaced)
	if err != nil {
		return nil, nil, fmt.Errorf("loading the program of the digest: %w", err)
	}
	defer coll.Close()
	return coll.DetachProgram(program), coll.DetachMap(DigestMapRevskDigests), nil
}

// Read returns the digest. A value that changes meanwhile is in it or not.
func (r *Reader) Read(ctx context.Context) (d Digest, err error) {
	defer func() { r.filled = d.Count > 0 }()
	// The kernel's own search for a first entry is faster than a program's.
	if !r.filled {
		if next, err := r.digested.NextKeyBytes(nil); err != nil || next == nil {
			return Digest{}, err
		}
	}
	if r.all == nil {
		return sumUp(ctx, r.iter, r.sum)
	}
	if _, err := r.all.Run(&ebpf.RunOptions{}); err != nil {
		return Digest{}, fmt.Errorf("running the program of the digest: %w", err)
	}
	return readSum(r.sum)
}

func sumUp(ctx context.Context, it *link.Iter, sum *ebpf.Map) (Digest, error) {
	if err := sum.Put(uint32(0), DigestRevskDigest{}); err != nil {
		return Digest{}, fmt.Errorf("zeroing the digest: %w", err)
	}
	if _, err := bpfiter.Run(ctx, it); err != nil {
		return Digest{}, err
	}
	return readSum(sum)
}

func readSum(sum *ebpf.Map) (Digest, error) {
	var d DigestRevskDigest
	err := sum.Lookup(uint32(0), &d)
	return Digest{d.Sum, d.Count}, err
}

// Entries returns how many entries the map has, in a time that does not depend on it, and whether the kernel counts them (Linux
// 6.6). What changes its value is not in it, nor what goes while another comes.
func (r *Reader) Entries() (n uint64, counted bool, err error) {
	if r.entries == nil {
		return 0, false, nil
	}
	count, err := r.entries.Run(&ebpf.RunOptions{})
	if err != nil {
		return 0, true, fmt.Errorf("counting the entries of a map: %w", err)
	}
	return uint64(count), true, nil
}

// Close frees the programs and their maps.
func (r *Reader) Close() error {
	err := errors.Join(r.digested.Close(), r.sum.Close(), r.all.Close(), r.entries.Close())
	if r.iter != nil {
		err = errors.Join(err, r.iter.Close())
	}
	return err
}

// counter has the program that counts, once it was loaded.
var counter struct {
	sync.Mutex
	program *ebpf.Program
	sum     *ebpf.Map
}

// CanCount tells whether [Count] has the program that counts: to load it takes as long as counting some thousand entries.
func CanCount() bool {
	counter.Lock()
	defer counter.Unlock()
	return counter.program != nil
}

// Count returns how many entries a hash has, of whatever size.
func Count(ctx context.Context, m *ebpf.Map) (n uint64, err error) {
	c := &counter
	c.Lock()
	defer c.Unlock()
	if c.program == nil {
		if c.program, c.sum, err = load(DigestProgDigestCount, nil); err != nil {
			return 0, err
		}
	}
	it, err := bpfiter.Attach(c.program, m)
	if err != nil {
		return 0, err
	}
	d, err := sumUp(ctx, it, c.sum)
	return d.Count, errors.Join(err, it.Close())
}
