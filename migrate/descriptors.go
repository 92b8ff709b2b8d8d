// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/internal/openfiles"
)

// ticketLevel is the level of the setsockopt calls that fill_descriptor is for (TICKET_LEVEL in
// bpf/iter/fill.c).
const ticketLevel = 0x72657673

// errNotServed: the socket is not below the cgroup of the hooks.
var errNotServed = errors.New("socket is not in the cgroup")

// descriptors visits sockets by their file descriptors. The hook that this takes is attached for as long
// as it is in use, and goes with the process.
type descriptors struct {
	programs *programs
	link     link.Link
	pidfds   map[int]int
}

func newDescriptors(p *programs, cgroup string) (*descriptors, error) {
	d := &descriptors{programs: p, pidfds: make(map[int]int)}
	prog := p.Programs[iter.FillProgFillDescriptor]
	if prog == nil {
		return d, nil // a plan changes nothing
	}
	var err error
	d.link, err = link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSetsockopt, Program: prog})
	if err != nil {
		return nil, fmt.Errorf("attaching a setsockopt hook to %s: %w", cgroup, err)
	}
	return d, nil
}

func (d *descriptors) close() {
	for _, fd := range d.pidfds {
		unix.Close(fd)
	}
	if d.link != nil {
		d.link.Close()
	}
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

// visit has fill_descriptor judge the entries of a socket. Returns an error wrapping errNotServed.
func (d *descriptors) visit(fd int, cookie uint64, s *iter.FillRevskImportSocket) error {
	tickets := d.programs.Maps[iter.FillMapRevskTickets]
	key := uint32(fd)
	if err := tickets.Put(key, iter.FillRevskTicket{Cookie: cookie, Next: s.First}); err != nil {
		return fmt.Errorf("putting a ticket on a socket: %w", err)
	}
	for range s.Count {
		if err := unix.SetsockoptString(fd, ticketLevel, 0, ""); err != nil {
			return errors.Join(fmt.Errorf("%w: %w", errNotServed, err), tickets.Delete(key))
		}
	}
	if err := tickets.Delete(key); err != nil {
		return fmt.Errorf("taking a ticket from a socket: %w", err)
	}
	return nil
}

// passByDescriptor visits the sockets of all processes, each once. What the kernel lists besides is seen
// but not reached, such as sockets in flight in a message: their entries are not leaked.
func (s *sweeper) passByDescriptor(ctx context.Context, p *programs) error {
	d, err := newDescriptors(p, s.cgroup)
	if err != nil {
		return engineError(EnginePidfd, err)
	}
	defer d.close()
	l := newLister(s, p)
	if err := l.listAll(ctx); err != nil {
		return err
	}
	err = d.eachSocket(ctx, func(fd int) error {
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		socket := p.sockets[cookie]
		if err != nil || socket == nil {
			return nil // of a kind without cookie, or without entries
		}
		if s.dryRun {
			return l.sight(fd, cookie)
		}
		if err := d.visit(fd, cookie, socket); err != nil && !errors.Is(err, errNotServed) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("visiting the sockets of processes: %w", err)
	}
	return nil
}

// eachSocket calls f with a descriptor of each socket that is in a file table, once for each socket.
func (d *descriptors) eachSocket(ctx context.Context, f func(fd int) error) error {
	files, err := openfiles.Sockets(ctx)
	if err != nil {
		return err
	}
	seen := make(map[uint64]bool)
	last := 0
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if file.PID != last {
			d.forget(last)
			last = file.PID
		}
		if seen[file.Inode] {
			continue
		}
		fd, err := d.get(file.PID, file.FD)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("taking a descriptor of process %d: %w", file.PID, err)
		}
		if err != nil {
			continue // closed meanwhile
		}
		seen[file.Inode] = true
		err = f(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	d.forget(last)
	return nil
}
