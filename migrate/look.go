// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/batch"
	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
)

// looker says what a migration would do with entries, and changes nothing.
type looker struct {
	engine Engine // not EngineAuto; EnginePidfd after EngineIter was refused
	// mayChange: of the engine, too, where a process keeps a socket locked that an iterator waits for.
	mayChange bool
	backends  []backendKey // sockets connected to them without an entry are counted
	hash      hash         // in which that entry would be

	// As of the last pass: the sockets that are connected to a backend and have no entry for it among those that were read. More
	// is how many of them were not noted, for there was no room.
	lacking map[connectedSocket]bool
	more    map[backendKey]int

	withoutEntry map[backendKey]int
}

// connectedSocket is a socket and what it is connected to.
type connectedSocket struct {
	key      hashKey // of the entry that it would have
	protocol lbmap.Protocol
}

func (s *connectedSocket) backend() backendKey { return backendKey{s.key.backend(), s.protocol} }

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
		err := pass(ctx)
		if errors.Is(err, blocked.ErrLocked) && l.engine == EngineIter && l.mayChange {
			l.engine = EnginePidfd
			return l.look(ctx, entries)
		}
		if err != nil {
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
	return l.count(ctx, pass)
}

// count counts the sockets that have no entry: those that two looks have found so. A hook writes the entry before the socket is
// connected, but the socket of the first look may have been closed before the hash was asked for its entry.
func (l *looker) count(ctx context.Context, pass func(context.Context) error) error {
	if err := l.askForEntries(); err != nil {
		return err
	}
	found := l.lacking
	// Where there are so many, it does not matter which of them come and go.
	if len(found) > 0 && len(l.more) == 0 {
		if err := pass(ctx); err != nil {
			return err
		}
		maps.DeleteFunc(found, func(s connectedSocket, _ bool) bool { return !l.lacking[s] })
		l.lacking = found
		if err := l.askForEntries(); err != nil {
			return err
		}
	}
	l.withoutEntry = maps.Clone(l.more)
	for s := range found {
		l.withoutEntry[s.backend()]++
	}
	return nil
}

// askForEntries asks the hash for those that sockets lack. That does not make them stay in it for longer.
func (l *looker) askForEntries() error {
	for s := range l.lacking {
		_, ok, err := l.hash.lookup(&s.key)
		if err != nil {
			return fmt.Errorf("looking up an entry again: %w", err)
		}
		if ok {
			delete(l.lacking, s)
		}
	}
	return nil
}

// anew forgets what sockets lack, before a pass.
func (l *looker) anew() {
	l.lacking, l.more = make(map[connectedSocket]bool), make(map[backendKey]int)
}

// lackingRoom is how many sockets without entries a pass in the kernel notes. A variable for tests.
var lackingRoom = 1 << 16

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
	if len(l.backends) > 0 {
		spec.Maps[iter.LookMapRevskLookLacking].MaxEntries = uint32(lackingRoom)
	}
	if err := spec.Variables[iter.LookVarCfgNoteLacking].Set(len(l.backends) > 0); err != nil {
		return nil, err
	}
	p, err := bpfiter.Load(spec, nil)
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
	l.anew()
	if err := p.Variables[iter.LookVarRevskLacking].Set(uint32(0)); err != nil {
		return engineError(l.engine, fmt.Errorf("forgetting what sockets lack: %w", err))
	}
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
	if len(l.backends) > 0 {
		if err := l.readLacking(p); err != nil {
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
		if known[at] && !x.has(number, at.addr) {
			l.lacking[connectedSocket{keyFor(cookie, at.addr), at.protocol}] = true
		}
		x.sightings()[number] = seen
	})
}

// readLacking reads which sockets without any entry are connected to a backend.
func (l *looker) readLacking(p *ebpf.Collection) error {
	var n uint32
	if err := p.Variables[iter.LookVarRevskLacking].Get(&n); err != nil {
		return engineError(l.engine, fmt.Errorf("reading how many sockets lack an entry: %w", err))
	}
	err := batch.Each(p.Maps[iter.LookMapRevskLookLacking], func(place uint32, s iter.LookRevskLookConnected) {
		if place < n {
			key := hashKey{Cookie: s.Cookie, Addr: s.Backend.Addr.Bytes, Port: s.Backend.Port}
			l.lacking[connectedSocket{key, lbmap.Protocol(s.Backend.Protocol)}] = true
		}
	})
	if err != nil || int(n) < lackingRoom {
		return err
	}
	return batch.Each(p.Maps[iter.LookMapRevskLookBackends], func(k iter.LookRevskLookBackend, n uint32) {
		if n > 0 {
			at := netip.AddrPortFrom(netip.AddrFrom16(k.Addr.Bytes).Unmap(), byteorder.Net16(k.Port))
			l.more[backendKey{at, lbmap.Protocol(k.Protocol)}] = int(n)
		}
	})
}

// passByDescriptor looks at what the kernel lists, and at the sockets of all processes.
func (l *looker) passByDescriptor(ctx context.Context, x *socketEntries) error {
	s := newLister(x)
	l.anew()
	if len(l.backends) > 0 {
		s.noteLacking(l.backends, l.lacking)
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
