// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/revnat"
)

var (
	// ErrNoProof is returned in mode legacy: an entry of the hash does not say whether the socket is
	// connected, or has only sent a datagram, or has long turned elsewhere.
	ErrNoProof = errors.New("mode legacy keeps no proof of a connection")

	// ErrCannotDestroy is returned on a kernel with neither way to destroy a socket.
	ErrCannotDestroy = errors.New("kernel cannot destroy sockets (needs Linux 6.5, or CONFIG_INET_DIAG_DESTROY)")

	// ErrUnreachable is the error of a socket in a network namespace that cannot be entered: nothing
	// keeps it but sockets, and no process has them open as files (in flight in a message, or in an
	// io_uring). Or this process lacks a capability, which the error names.
	ErrUnreachable = errors.New("no way into its network namespace")

	// ErrUnmigrated is returned in the modes dual and mirror if sockets are connected to the backends of which only the
	// hash knows by which service: a migration has to move that onto the sockets first.
	ErrUnmigrated = errors.New("only the hash knows their service")

	// ErrLocked is the error of a socket that a process keeps locked, or just works on. It is left alone: asked for its end, the
	// kernel could wait as long as that process likes.
	ErrLocked = blocked.ErrLocked

	// ErrStillConnected is the error of a socket that is connected to the backend after all: mostly
	// because its application, or the service, goes there again and again.
	ErrStillConnected = errors.New("still connected, or again")
)

// TerminateOptions are the options of [Terminate].
type TerminateOptions struct {
	// Backends are those to which connections end.
	Backends []Backend
	// Service limits that to the connections of one service. The zero value stands for every service.
	Service ServiceFilter
	// DryRun destroys nothing and says what would be destroyed.
	DryRun bool
	// Most is how many sockets are ended, at most: [Report].More says that there were others. Those that cannot be ended do not
	// count. No process gets more of the places than another that has sockets left, so that who has many keeps nobody else
	// waiting; whose a socket is says its first owner. 0: all.
	Most int
}

// Report is what [Terminate] has done.
type Report struct {
	// Mechanism is how sockets are destroyed: "bpf_sock_destroy" or "sock_diag". Empty: none was
	// found that would have to be.
	Mechanism string
	// Sockets are those that were found to be connected, in the order of [Sockets].
	Sockets []Termination
	// Unmigrated is how many sockets [ErrUnmigrated] is about.
	Unmigrated int
	// More tells that others were left out, for TerminateOptions.Most.
	More bool
}

// Termination is what has become of a socket.
type Termination struct {
	// Socket is as it was before.
	Socket Socket
	// Connection is the tuple by which it was connected.
	Connection revnat.Tuple
	Outcome    Outcome
	// Err says why, for [OutcomeFailed]: it wraps [ErrUnreachable], [ErrLocked], [ErrStillConnected] or an
	// error of the kernel.
	Err error
}

// Outcome is what has become of a socket.
type Outcome string

const (
	// OutcomeDestroyed: the application finds ECONNABORTED, or EDESTADDRREQ where it sends a datagram
	// without reading the socket's error first.
	OutcomeDestroyed Outcome = "destroyed"
	// OutcomeLeft: it was closed, disconnected or connected elsewhere before it could be destroyed.
	OutcomeLeft Outcome = "left"
	// OutcomeFailed: it is still connected to the backend.
	OutcomeFailed Outcome = "failed"
	// OutcomeFound: nothing was done to it, in a dry run or because of an error.
	OutcomeFound Outcome = "found"
)

// Count returns how many sockets have this outcome.
func (r *Report) Count(o Outcome) (n int) {
	for _, t := range r.Sockets {
		if t.Outcome == o {
			n++
		}
	}
	return n
}

// Terminator ends sockets as often as one likes. Its programs are loaded once.
//
// It has one user at a time: another gets [ErrInUse].
type Terminator struct {
	maps       Maps
	reader     *Reader
	destroyers []destroyer // those that may be used, the best one first; for tests
	destroyer  destroyer   // nil: not chosen yet
	inUse      atomic.Bool
}

// OpenTerminator loads the programs that find sockets; those that destroy them are loaded when there is one. Of the options
// SkipOwners does not count. The maps must stay open.
//
// Returns the errors of [Open].
func OpenTerminator(maps Maps, opts Options) (*Terminator, error) {
	opts.SkipOwners = false
	r, err := Open(maps, opts)
	if err != nil {
		return nil, err
	}
	return &Terminator{maps: maps, reader: r, destroyers: []destroyer{&bpfDestroyer{}, &diagDestroyer{}}}, nil
}

// Close frees what the terminator has in the kernel. It returns [ErrInUse] as [Reader.Close] does.
func (t *Terminator) Close() error {
	if t == nil || !t.inUse.CompareAndSwap(false, true) {
		return ErrInUse // for ever, once closed
	}
	if t.destroyer != nil {
		t.destroyer.close()
	}
	return t.reader.Close()
}

// ConnectedBackends is [Reader.ConnectedBackends].
func (t *Terminator) ConnectedBackends(ctx context.Context) ([]Backend, error) {
	if t == nil {
		return nil, ErrInUse
	}
	return t.reader.ConnectedBackends(ctx)
}

// Terminate is [Terminator.Terminate] of one that is opened for it.
func Terminate(ctx context.Context, maps Maps, opts TerminateOptions) (Report, error) {
	t, err := OpenTerminator(maps, Options{})
	if err != nil {
		return Report{Sockets: []Termination{}}, fmt.Errorf("terminating connections: %w", err)
	}
	defer t.Close()
	return t.Terminate(ctx, opts)
}

// Terminate destroys the sockets that are connected to given backends through a service, in all
// network namespaces. It is for backends that are gone, whose sockets would otherwise wait for answers
// that never come.
//
// What is destroyed is decided by [Socket.Connection]: what the hooks remember and what the kernel says
// must agree. Sockets that have only sent to the backend, have disconnected or connected elsewhere, or
// are connected to the backend's own address without a service are left alone; so is what an
// application has closed already. Sockets that connect meanwhile are destroyed too, unless they are so
// many that there is no end to it.
//
// On Linux 6.5 and later a BPF iterator looks at each socket once more, under the socket's lock, and
// destroys it there. Elsewhere sock_diag does (SOCK_DESTROY), by addresses and cookie; there remains a
// moment in which a datagram socket that disconnects is destroyed nonetheless. Needs the capabilities
// of [Sockets], CAP_NET_ADMIN and, for other namespaces, CAP_SYS_ADMIN and CAP_SYS_PTRACE.
//
// Returns an error wrapping [ErrInUse], [ErrNoProof], [ErrCannotDestroy], [ErrNoMap] or [ErrNotSupported], with
// nothing destroyed; after other errors Report is what was done before. [ErrUnmigrated] is one of these: all was done, but there
// are sockets that were not touched. A socket that could not be
// destroyed is no error of Terminate.
func (t *Terminator) Terminate(ctx context.Context, opts TerminateOptions) (Report, error) {
	if t == nil || !t.inUse.CompareAndSwap(false, true) {
		return Report{Sockets: []Termination{}}, ErrInUse
	}
	defer t.inUse.Store(false)
	one := termination{
		Terminator: t, opts: opts,
		meant: Filter{Service: opts.Service, Backends: NewBackendSet(opts.Backends...), Connected: true},
		found: make(map[SocketID]*Termination),
	}
	err := one.run(ctx)
	if err != nil {
		err = fmt.Errorf("terminating connections: %w", err)
	}
	return one.report(), err
}

// rounds is how often sockets are looked for that have connected meanwhile, or that a system call worked on: those have rested.
const (
	rounds    = 3
	ownedRest = 20 * time.Millisecond
)

type termination struct {
	*Terminator
	opts  TerminateOptions
	meant Filter
	used  bool // the destroyer
	found map[SocketID]*Termination
	left  int  // unmigrated
	more  bool // sockets were left out
}

// SocketID is what a socket is known by from one look to the next, on every kernel; it can be compared, and is a key of maps.
// Its cookie is not part of it: before Linux 5.12 the first look may see none.
type SocketID struct {
	netns, inode uint64
	local, peer  netip.AddrPort
}

// ID is what the socket is known by, as long as it is open and stays connected.
func (s *Socket) ID() SocketID { return SocketID{s.NetNS.Inode, s.Inode, s.Local, s.Peer} }

func (t *termination) run(ctx context.Context) error {
	hasHash, err := needStorage(t.maps.Config)
	if err != nil {
		return err
	}
	if err := t.endAll(ctx); err != nil || !hasHash {
		return err
	}
	if t.left, err = t.unmigrated(ctx); err == nil && t.left > 0 {
		err = fmt.Errorf("%d sockets are connected to these backends: %w", t.left, ErrUnmigrated)
	}
	return err
}

// endAll destroys what is connected, until nothing is.
func (t *termination) endAll(ctx context.Context) error {
	for round := 0; round < rounds; round++ {
		failed := t.failed()
		connected, err := t.connected(ctx, t.opts.Most+failed)
		if err != nil || len(connected) == 0 {
			return err
		}
		if err := t.load(); err != nil {
			return err
		}
		t.used = true
		if err := t.destroy(ctx, connected); err != nil {
			return err
		}
		has := func(is func(c *Termination) bool) bool { return slices.ContainsFunc(connected, is) }
		switch {
		case t.opts.DryRun:
			return nil
		case t.more && t.failed() > failed:
			round-- // others take the place of those that cannot be ended
		case has(func(c *Termination) bool { return c.Outcome != OutcomeFailed }):
		case has(func(c *Termination) bool { return c.Socket.owned }):
			time.Sleep(ownedRest) // until the system call has ended, unless it is one that does not
		default:
			return nil // another round would not find or do more
		}
	}
	connected, err := t.connected(ctx, len(t.found))
	for _, c := range connected {
		if c.Outcome != OutcomeFailed {
			c.set(OutcomeFailed, ErrStillConnected)
		}
	}
	return err
}

// needStorage returns an error wrapping ErrNoProof unless the mode is one with storage, and whether it is one with the
// hash, too.
func needStorage(config *ebpf.Map) (hasHash bool, err error) {
	if err := need(map[string]*ebpf.Map{"revsk_config": config}); err != nil {
		return false, err
	}
	var cfg sock.SockRevskConfigValue
	if err := config.Lookup(uint32(0), &cfg); err != nil {
		return false, fmt.Errorf("reading the mode: %w", err)
	}
	switch sock.SockRevskMode(cfg.Mode) {
	case sock.SockRevskModeREVSK_MODE_LEGACY:
		return false, ErrNoProof
	case sock.SockRevskModeREVSK_MODE_STORAGE:
		return false, nil
	}
	return true, nil
}

// failed is how many sockets could not be ended.
func (t *termination) failed() (n int) {
	for _, c := range t.found {
		if c.Outcome == OutcomeFailed {
			n++
		}
	}
	return n
}

// connected returns what is to be destroyed. A socket that was to be before is among them if it still
// is, or is again. With TerminateOptions.Most, so many sockets are known afterwards at most.
func (t *termination) connected(ctx context.Context, most int) ([]*Termination, error) {
	var all []*Termination
	places := most - len(t.found)
	if t.opts.Most == 0 {
		places = math.MaxInt
	}
	others := newFairShare(places)
	for s, err := range t.reader.Sockets(ctx, t.meant) {
		if err != nil {
			return nil, err
		}
		if known := t.found[s.ID()]; known != nil {
			known.Socket.owned = s.owned
			all = append(all, known)
		} else {
			others.add(&Termination{Socket: s, Connection: *s.Connection(), Outcome: OutcomeFound})
		}
	}
	t.more = others.full
	for _, of := range others.of {
		for _, c := range of {
			t.found[c.Socket.ID()] = c
		}
		all = append(all, of...)
	}
	return all, nil
}

// load chooses the best destroyer that the kernel has what it takes for, when one is needed first.
func (t *Terminator) load() error {
	if t.destroyer != nil {
		return nil
	}
	var missing error
	for _, d := range t.destroyers {
		err := d.load(t.maps)
		if err == nil {
			t.destroyer = d
			return nil
		}
		if !errors.Is(err, errCannot) {
			return err
		}
		missing = errors.Join(missing, err)
	}
	return fmt.Errorf("%w: %w", ErrCannotDestroy, missing)
}

func (t *termination) report() Report {
	r := Report{Sockets: []Termination{}, Unmigrated: t.left, More: t.more}
	if t.used {
		r.Mechanism = t.destroyer.name()
	}
	for _, found := range t.found {
		r.Sockets = append(r.Sockets, *found)
	}
	slices.SortFunc(r.Sockets, func(a, b Termination) int { return compareSockets(a.Socket, b.Socket) })
	return r
}
