// SPDX-License-Identifier: Apache-2.0

// Package mapdigest tells whether the values of a hash have changed, without copying them to user space: a BPF
// iterator adds up a hash of each. Minimum kernel: Linux 5.9 with BTF.
package mapdigest

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/revsk/revsk/internal/bpfiter"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I../../bpf/lib" -target bpfel,bpfeb -go-package mapdigest -output-stem mapdigest -no-global-types -type revsk_digest Digest mapdigest.c

// Digest says what the values of a map are: as many, and the same, if it is equal. Which keys they have does not
// matter.
type Digest struct {
	Sum, Count uint64
}

// Reader reads the digest of one map. It is not safe for use by several goroutines.
type Reader struct {
	iter *link.Iter
	sum  *ebpf.Map
}

// Open makes a reader of a map with values of 12 or 24 bytes, as those of backends. The map may be closed before it.
func Open(m *ebpf.Map) (*Reader, error) {
	switch m.ValueSize() {
	case 12:
		return open(m, DigestProgDigest12)
	case 24:
		return open(m, DigestProgDigest24)
	}
	return nil, fmt.Errorf("digest of %v: values of %d bytes", m, m.ValueSize())
}

// Count returns how many entries a hash has, of whatever size.
func Count(ctx context.Context, m *ebpf.Map) (uint64, error) {
	r, err := open(m, DigestProgDigestCount)
	if err != nil {
		return 0, err
	}
	d, err := r.Read(ctx)
	return d.Count, errors.Join(err, r.Close())
}

func open(m *ebpf.Map, program string) (*Reader, error) {
	spec, err := LoadDigest()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("loading the program of the digest: %w", err)
	}
	defer coll.Close()
	it, err := bpfiter.Attach(coll.Programs[program], m)
	if err != nil {
		return nil, err
	}
	return &Reader{it, coll.DetachMap(DigestMapRevskDigests)}, nil
}

// Read returns the digest. A value that changes meanwhile is in it or not.
func (r *Reader) Read(ctx context.Context) (Digest, error) {
	if err := r.sum.Put(uint32(0), DigestRevskDigest{}); err != nil {
		return Digest{}, fmt.Errorf("zeroing the digest: %w", err)
	}
	if _, err := bpfiter.Run(ctx, r.iter); err != nil {
		return Digest{}, err
	}
	var d DigestRevskDigest
	err := r.sum.Lookup(uint32(0), &d)
	return Digest{d.Sum, d.Count}, err
}

// Close frees the program and its map.
func (r *Reader) Close() error { return errors.Join(r.iter.Close(), r.sum.Close()) }
