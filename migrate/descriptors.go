// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/blocked"
	"github.com/revsk/revsk/internal/openfiles"
)

// requestLevel is the level of the setsockopt calls that fill_descriptor is for (REQUEST_LEVEL in
// bpf/iter/descriptor.c).
const requestLevel = 0x72657673

// errNotReached: no program has done its work for the socket. It is not below the cgroup of the hooks, for
// example.
var errNotReached = errors.New("socket could not be reached")

// descriptors visits sockets by their file descriptors. The hook that this takes is attached when the first
// socket needs it, for as long as descriptors is open, and goes with the process.
//
// The hook serves the thread that visits a socket, and no other.
type descriptors struct {
	programs *programs
	cgroup   string
	hooks    []link.Link // in the order in which they run
	refused  error       // wraps errHookRefused
	pidfds   map[int]int
}

func newDescriptors(p *programs, cgroup string) *descriptors {
	return &descriptors{programs: p, cgroup: cgroup, pidfds: make(map[int]int)}
}

// close may be called once.
func (d *descriptors) close() {
	for _, fd := range d.pidfds {
		unix.Close(fd)
	}
	d.detach()
}

func (d *descriptors) detach() {
	for _, hook := range d.hooks {
		hook.Close()
	}
	d.hooks = nil
}

// attach makes setsockopt calls of this thread reach the program. Returns an error wrapping errNotReached if
// the programs of others do not allow it.
func (d *descriptors) attach() error {
	if len(d.hooks) > 0 {
		return nil
	}
	if d.refused == nil {
		if err := d.programs.loadDescriptors(); err != nil {
			return fmt.Errorf("loading the programs that visit sockets by descriptor: %w", err)
		}
		var err error
		for _, name := range []string{iter.DescriptorProgGrowDescriptor, iter.DescriptorProgFillDescriptor} {
			var hook link.Link
			if hook, err = attachSockoptHook(d.cgroup, d.programs.descriptors.Programs[name]); err != nil {
				d.detach()
				break
			}
			d.hooks = append(d.hooks, hook)
		}
		if !errors.Is(err, errHookRefused) {
			return err
		}
		d.refused = err
	}
	d.programs.unreached = d.refused
	return fmt.Errorf("%w: %w", errNotReached, d.refused)
}

// get returns a descriptor of this process for that of another. The caller closes it.
func (d *descriptors) get(pid, fd int) (int, error) {
	pidfd, ok := d.pidfds[pid]
	if !ok {
		var err error
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return -1, err
		}
		d.pidfds[pid] = pidfd
	}
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// forget closes the descriptor of a process.
func (d *descriptors) forget(pid int) {
	if pidfd, ok := d.pidfds[pid]; ok {
		unix.Close(pidfd)
		delete(d.pidfds, pid)
	}
}

// visitIf visits the socket if it is still the one with the cookie.
func (d *descriptors) visitIf(fd int, cookie uint64, s *iter.FillRevskImportSocket) error {
	has, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil || has != cookie {
		return nil // another file by now
	}
	return d.visit(fd, cookie, s)
}

// visit has fill_descriptor judge the entries of a socket. Returns an error wrapping errNotReached.
func (d *descriptors) visit(fd int, cookie uint64, s *iter.FillRevskImportSocket) (err error) {
	if err := d.attach(); err != nil {
		return err
	}
	requests := d.programs.descriptors.Maps[iter.DescriptorMapRevskRequests]
	request := iter.DescriptorRevskRequest{Cookie: cookie, Nonce: nonce()}
	err = requests.Put(uint32(fd), request)
	if errors.Is(err, unix.ENOMEM) {
		// The application may have used up what the socket may have. That is no reason to leave those of others.
		if number, ok := d.programs.number(cookie); ok {
			d.programs.withoutRoom[number] = true
		}
		return errNotReached
	}
	if err != nil {
		return fmt.Errorf("storing a request on a socket: %w", err)
	}
	defer func() {
		if deleteErr := requests.Delete(uint32(fd)); deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("deleting a request from a socket: %w", deleteErr))
		}
	}()
	err = d.call(fd, cookie, request.Nonce, s.Count)
	if errors.Is(err, blocked.ErrLocked) {
		if number, ok := d.programs.number(cookie); ok {
			d.programs.locked[number] = true
		}
		return errNotReached
	}
	return err
}

// visits wait for the lock of the socket that is visited.
var visits blocked.Calls

// call makes the calls that have fill_descriptor judge the entries of a socket. Returns an error wrapping errNotReached, or
// [blocked.ErrLocked].
func (d *descriptors) call(fd int, cookie, nonce uint64, entries uint32) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	noteCaller, requests := d.programs.descriptors.Programs[iter.DescriptorProgNoteCaller], d.programs.descriptors.Maps[iter.DescriptorMapRevskRequests]
	var left atomic.Bool // nobody waits for it any more
	err = visits.Do(cookie, func() { unix.Close(own) }, func() error {
		// In the kernel's own words for the thread, which do not depend on a namespace.
		if _, err := noteCaller.Run(&ebpf.RunOptions{}); err != nil {
			return fmt.Errorf("noting whose calls the setsockopt hook is to serve: %w", err)
		}
		var call [16]byte // struct revsk_call
		binary.NativeEndian.PutUint64(call[:], nonce)
		for i := range entries {
			binary.NativeEndian.PutUint32(call[8:], i)
			// What another program on the hook makes of the call says nothing: all of them run.
			refusal := unix.SetsockoptString(own, requestLevel, 0, string(call[:]))
			if left.Load() {
				return nil
			}
			if refusal == nil && i+1 < entries {
				continue
			}
			var request iter.DescriptorRevskRequest
			if err := requests.Lookup(uint32(own), &request); err != nil {
				return fmt.Errorf("reading a request back: %w", err)
			}
			if request.Served != i+1 {
				return errors.Join(errNotReached, refusal)
			}
		}
		return nil
	})
	left.Store(errors.Is(err, blocked.ErrLocked))
	return err
}

// nonce is a number that nobody else knows.
func nonce() uint64 {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // it never fails
	}
	return binary.NativeEndian.Uint64(b[:])
}

// passByDescriptor visits the sockets of all processes, each once. What the kernel lists besides is seen
// but not reached, such as sockets in flight in a message: their entries are not leaked.
func (s *visitor) passByDescriptor(ctx context.Context, p *programs) error {
	d := newDescriptors(p, s.cgroup)
	defer d.close()
	l := newLister(p.socketEntries)
	if err := l.listAll(ctx); err != nil {
		return err
	}
	err := d.eachSocket(ctx, l.without, func(fd int) error {
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		number, ok := p.number(cookie)
		if err != nil || !ok {
			return nil // of a kind without cookie, or without entries
		}
		if err := d.visit(fd, cookie, &p.states[number]); !errors.Is(err, errNotReached) {
			return err
		}
		return l.sight(fd, number)
	})
	if err != nil {
		return fmt.Errorf("visiting the sockets of processes: %w", err)
	}
	return nil
}

// eachSocket calls f with a descriptor of each socket that is in a file table, once for each socket. Those in
// done, by inode, are left out, and the others added to it.
func (d *descriptors) eachSocket(ctx context.Context, done map[uint64]bool, f func(fd int) error) error {
	last := 0
	for file, err := range openfiles.Sockets(ctx) {
		if err != nil {
			return err
		}
		if file.PID != last {
			d.forget(last)
			last = file.PID
		}
		if done[file.Inode] {
			continue
		}
		fd, err := d.get(file.PID, file.FD)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("taking a descriptor of process %d: %w", file.PID, err)
		}
		if err != nil {
			continue // closed meanwhile
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Ino != file.Inode {
			unix.Close(fd)
			continue // another file by now: the socket may still be found with others
		}
		done[file.Inode] = true
		err = f(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	d.forget(last)
	return nil
}
