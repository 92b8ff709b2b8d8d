// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	programs "github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/lbmap"
)

// bpfDestroyer destroys with bpf_sock_destroy, in iterators over the sockets of a network namespace.
type bpfDestroyer struct {
	programs *ebpf.Collection
}

// destroyBatch is how many sockets the programs can be told of at once.
const destroyBatch = 1 << 16

func (d *bpfDestroyer) name() string { return "bpf_sock_destroy" }

func (d *bpfDestroyer) load(maps Maps) error {
	spec, err := programs.LoadDestroy()
	if err != nil {
		return err
	}
	spec.Maps[programs.DestroyMapRevskVictims].MaxEntries = destroyBatch
	d.programs, err = bpfiter.Load(spec, maps.tuples())
	err = probe.Recheck(err)
	refused := new(ebpf.VerifierError)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.As(err, &refused) {
		return fmt.Errorf("bpf_sock_destroy %w: %w", errCannot, err)
	}
	if err != nil {
		return fmt.Errorf("loading iterators that destroy: %w", err)
	}
	return nil
}

func (d *bpfDestroyer) close() { d.programs.Close() }

// The verdicts of the programs, of which the others are negative errors.
const (
	verdictNone      = 0
	verdictDestroyed = 1
	verdictChanged   = 2
)

func (d *bpfDestroyer) destroy(ctx context.Context, sockets []*Termination) error {
	for batch := range slices.Chunk(sockets, destroyBatch) {
		if err := d.destroyBatch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (d *bpfDestroyer) destroyBatch(ctx context.Context, sockets []*Termination) error {
	victims := d.programs.Maps[programs.DestroyMapRevskVictims]
	iterators := make(map[string]bool)
	for _, s := range sockets {
		if err := victims.Put(s.Socket.Cookie, victim(s)); err != nil {
			return fmt.Errorf("telling the iterators what to destroy: %w", err)
		}
		if s.Socket.Protocol == lbmap.ProtocolTCP {
			iterators[programs.DestroyProgDestroyTcp] = true
		} else {
			iterators[programs.DestroyProgDestroyUdp] = true
		}
	}
	var locked error
	for name := range iterators {
		err := visit(ctx, d.programs.Programs[name])
		if err != nil && !errors.Is(err, ErrLocked) {
			return err
		}
		locked = errors.Join(locked, err)
	}
	for _, s := range sockets {
		var v programs.DestroyRevskVictim
		// What the iterators meet later is none of theirs any more.
		if err := victims.LookupAndDelete(s.Socket.Cookie, &v); err != nil {
			return fmt.Errorf("reading what was destroyed: %w", err)
		}
		switch v.Verdict {
		case verdictDestroyed:
			s.set(OutcomeDestroyed, nil)
		case verdictNone, verdictChanged:
			s.set(OutcomeLeft, nil)
		default:
			s.set(OutcomeFailed, fmt.Errorf("bpf_sock_destroy: %w", unix.Errno(-v.Verdict)))
		}
	}
	return locked
}

func victim(s *Termination) programs.DestroyRevskVictim {
	v := programs.DestroyRevskVictim{
		PeerPort:    byteorder.Net16(s.Connection.Peer.Port()),
		ServicePort: byteorder.Net16(s.Connection.Service.Port()),
	}
	v.Peer.Bytes = s.Connection.Peer.Addr().As16()
	v.Service.Bytes = s.Connection.Service.Addr().As16()
	return v
}
