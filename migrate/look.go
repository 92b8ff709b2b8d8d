// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
)

// looker says what a migration would do with entries, and changes nothing.
type looker struct {
	engine   Engine       // not EngineAuto; EnginePidfd after EngineIter was refused
	backends []backendKey // sockets connected to them without an entry are counted

	withoutEntry map[backendKey]int
}

type backendKey struct {
	addr     netip.AddrPort
	protocol lbmap.Protocol
}

// look looks for the sockets of the entries, until another look finds nothing new, and sets their results. That an entry
// is held is the caller's to say.
func (l *looker) look(ctx context.Context, entries []*entry) error {
	if len(entries) == 0 && len(l.backends) == 0 {
		return nil
	}
	x := bySocket(entries)
	pass, stop, err := l.begin(x)
	if err != nil {
		return engineError(l.engine, err)
	}
	defer stop()
	for last := len(x.cookies) + 1; ; {
		if err := pass(ctx); err != nil {
			return err
		}
		unseen := 0
		for _, s := range x.sightings() {
			if !s.seen {
				unseen++
			}
		}
		if unseen == 0 || unseen == last {
			break
		}
		last = unseen
		// Between two passes: what is received after this look the next one finds in a file table.
		if err := x.seeQueued(ctx); err != nil {
			return fmt.Errorf("looking for sockets in flight: %w", err)
		}
	}
	for number, seen := range x.sightings() {
		for _, e := range x.of(number) {
			e.judgeSeen(seen)
		}
	}
	return nil
}

// begin returns what looks once at all sockets that the engine finds.
func (l *looker) begin(x *socketEntries) (pass func(context.Context) error, stop func(), err error) {
	if l.engine == EngineIter {
		p, err := l.load(x)
		if err == nil {
			return func(ctx context.Context) error { return l.passInKernel(ctx, p, x) }, p.Close, nil
		}
		if !refused(err) {
			return nil, nil, err
		}
		l.engine = EnginePidfd
	}
	return func(ctx context.Context) error { return l.passByDescriptor(ctx, x) }, func() {}, nil
}

// load loads the programs of bpf/iter/look.c, and tells them which sockets have entries.
func (l *looker) load(x *socketEntries) (*ebpf.Collection, error) {
	spec, err := iter.LoadLook()
	if err != nil {
		return nil, err
	}
	spec.Maps[iter.LookMapRevskLookSockets].MaxEntries = uint32(max(1, len(x.cookies)))
	spec.Maps[iter.LookMapRevskLookBackends].MaxEntries = uint32(max(1, len(l.backends)))
	if err := spec.Variables[iter.LookVarCfgCountBackends].Set(len(l.backends) > 0); err != nil {
		return nil, err
	}
	p, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: bpfiter.Types})
	if err != nil {
		return nil, err
	}
	keys := make([]iter.LookRevskLookBackend, len(l.backends))
	for i, b := range l.backends {
		keys[i].Addr.Bytes, keys[i].Port = b.addr.Addr().As16(), byteorder.Net16(b.addr.Port())
		keys[i].Protocol = uint16(b.protocol)
	}
	err = batch.Write(p.Maps[iter.LookMapRevskLookSockets], x.cookies, make([]iter.LookRevskLookSocket, len(x.cookies)))
	if err == nil {
		err = batch.Write(p.Maps[iter.LookMapRevskLookBackends], keys, make([]uint32, len(keys)))
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("handing sockets to the programs: %w", err)
	}
	return p, nil
}

// passInKernel runs the programs and reads what they have found.
func (l *looker) passInKernel(ctx context.Context, p *ebpf.Collection, x *socketEntries) error {
	err := runInNamespaces(ctx, never, p.Programs[iter.LookProgLookTcp], p.Programs[iter.LookProgLookUdp])
	if err != nil {
		return fmt.Errorf("looking at the sockets of network namespaces: %w", err)
	}
	var found uint64
	if err := p.Variables[iter.LookVarRevskFound].Get(&found); err != nil {
		return engineError(l.engine, fmt.Errorf("reading how many sockets were found: %w", err))
	}
	if int(found) < len(x.cookies) {
		if _, err := bpfiter.RunProgram(ctx, p.Programs[iter.LookProgLookFiles], nil); err != nil {
			return fmt.Errorf("looking at the sockets of processes: %w", err)
		}
	}
	first := l.withoutEntry == nil
	if first && len(l.backends) > 0 {
		// Another pass would count the same sockets again.
		if err := l.readBackends(p); err != nil {
			return err
		}
	}
	known := make(map[backendKey]bool)
	for _, b := range l.backends {
		known[b] = true
	}
	return batch.Each(p.Maps[iter.LookMapRevskLookSockets], func(cookie uint64, s iter.LookRevskLookSocket) {
		number, ok := x.number(cookie)
		if !ok || s.Found == 0 {
			return
		}
		seen := sighting{seen: true, family: s.Family, protocol: lbmap.Protocol(s.Protocol)}
		if s.PeerPort != 0 {
			seen.remote = netip.AddrPortFrom(netip.AddrFrom16(s.Peer.Bytes).Unmap(), byteorder.Net16(s.PeerPort))
		}
		at := backendKey{seen.remote, seen.protocol}
		if first && known[at] && !x.has(number, at.addr) {
			l.withoutEntry[at]++
		}
		x.sightings()[number] = seen
	})
}

// readBackends reads how many sockets without any entry are connected to each backend.
func (l *looker) readBackends(p *ebpf.Collection) error {
	l.withoutEntry = make(map[backendKey]int)
	return batch.Each(p.Maps[iter.LookMapRevskLookBackends], func(k iter.LookRevskLookBackend, n uint32) {
		if n > 0 {
			at := netip.AddrPortFrom(netip.AddrFrom16(k.Addr.Bytes).Unmap(), byteorder.Net16(k.Port))
			l.withoutEntry[backendKey{at, lbmap.Protocol(k.Protocol)}] = int(n)
		}
	})
}

// passByDescriptor looks at what the kernel lists, and at the sockets of all processes.
func (l *looker) passByDescriptor(ctx context.Context, x *socketEntries) error {
	s := newLister(x)
	if l.withoutEntry == nil && len(l.backends) > 0 {
		l.withoutEntry = make(map[backendKey]int)
		s.count(l.backends, l.withoutEntry)
	}
	if err := s.listAll(ctx); err != nil {
		return err
	}
	d := newDescriptors(nil, "")
	defer d.close()
	if err := d.eachSocket(ctx, s.known, s.sightIfWanted); err != nil {
		return fmt.Errorf("looking at the sockets of processes: %w", err)
	}
	return nil
}
