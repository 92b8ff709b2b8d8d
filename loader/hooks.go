// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
)

// hook is a place on the cgroup where one of the programs is attached.
type hook struct {
	program string // also the name of the link's pin
	attach  ebpf.AttachType
	// wanted tells whether the features need the hook; nil: always.
	wanted func(*Features) bool
}

func (h hook) isWanted(f *Features) bool { return h.wanted == nil || h.wanted(f) }

func nodePort(f *Features) bool    { return f.NodePort }
func healthCheck(f *Features) bool { return f.HealthCheck }

// releaseHook's program comes in two versions; see releaseProgram.
const releaseHook = sock.SockProgRevskRelease

// hooks in the order in which they are attached and replaced: readers of the state first, then its
// writers, so that at no moment is a tuple written where the current readers do not look.
var hooks = []hook{
	{program: sock.SockProgRevskRecvmsg4, attach: ebpf.AttachCGroupUDP4Recvmsg},
	{program: sock.SockProgRevskRecvmsg6, attach: ebpf.AttachCGroupUDP6Recvmsg},
	{program: sock.SockProgRevskGetpeername4, attach: ebpf.AttachCgroupInet4GetPeername},
	{program: sock.SockProgRevskGetpeername6, attach: ebpf.AttachCgroupInet6GetPeername},
	{program: releaseHook, attach: ebpf.AttachCgroupInetSockRelease},
	{program: sock.SockProgRevskConnect4, attach: ebpf.AttachCGroupInet4Connect},
	{program: sock.SockProgRevskConnect6, attach: ebpf.AttachCGroupInet6Connect},
	{program: sock.SockProgRevskSendmsg4, attach: ebpf.AttachCGroupUDP4Sendmsg},
	{program: sock.SockProgRevskSendmsg6, attach: ebpf.AttachCGroupUDP6Sendmsg},
	{program: sock.SockProgRevskPostBind4, attach: ebpf.AttachCGroupInet4PostBind, wanted: nodePort},
	{program: sock.SockProgRevskPostBind6, attach: ebpf.AttachCGroupInet6PostBind, wanted: nodePort},
	{program: sock.SockProgRevskBind4, attach: ebpf.AttachCGroupInet4Bind, wanted: healthCheck},
	{program: sock.SockProgRevskBind6, attach: ebpf.AttachCGroupInet6Bind, wanted: healthCheck},
}

// openLink opens the pinned link of a hook; nil if there is none. It makes sure that the link is
// what its name says: the kernel lets a link take a program of another hook (and nothing works).
// A link that is not live was detached, by an unload that was cut short or with its cgroup.
func openLink(opts Options, h hook) (l link.Link, live bool, err error) {
	path := filepath.Join(opts.linksDir(), h.program)
	l, err = link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, describe(fmt.Errorf("opening %s: %w", path, err))
	}
	live, err = checkLink(opts, h, l)
	if err != nil {
		l.Close()
		return nil, false, fmt.Errorf("%s: %w", path, err)
	}
	return l, live, nil
}

// detach takes the program off its hook, at once: removing the last pin would do so some time later.
func detach(l interface {
	Detach() error
	Unpin() error
}) error {
	return errors.Join(l.Detach(), l.Unpin())
}

func checkLink(opts Options, h hook, l link.Link) (live bool, err error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	cgroup := info.Cgroup()
	if cgroup == nil {
		return false, fmt.Errorf("%w: a link of type %d", ErrForeignLink, info.Type)
	}
	if ebpf.AttachType(cgroup.AttachType) != h.attach {
		return false, fmt.Errorf("%w: attached as %v", ErrForeignLink, ebpf.AttachType(cgroup.AttachType))
	}
	if cgroup.CgroupId == 0 {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(opts.Cgroup, &st); err != nil {
		return false, fmt.Errorf("cgroup %s: %w", opts.Cgroup, err)
	}
	// A cgroup's id is the inode number of its directory.
	if cgroup.CgroupId != st.Ino {
		return false, fmt.Errorf("%w: attached to another cgroup than %s", ErrForeignLink, opts.Cgroup)
	}
	return true, nil
}

// attachHook puts the program on its hook: the pinned link is updated in one atomic step, or a link
// is made. It registers how to undo that.
func attachHook(opts Options, h hook, prog *ebpf.Program, undo *undoer) error {
	if err := opts.step("attach " + h.program); err != nil {
		return err
	}
	l, live, err := openLink(opts, h)
	if err != nil {
		return err
	}
	if l != nil {
		undo.hold(l)
	}
	if live {
		return replaceProgram(opts, h, l, prog, undo)
	}
	if opts.DryRun {
		if err := checkNotExclusive(opts.Cgroup, h); err != nil {
			return err
		}
		opts.changed(ActionAttach, h.program)
		return nil
	}
	if l != nil {
		if err := l.Unpin(); err != nil {
			return fmt.Errorf("removing the dead link of %s: %w", h.program, err)
		}
	}

	cgroup, err := os.Open(opts.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	raw, err := link.AttachRawLink(link.RawLinkOptions{
		Target:  int(cgroup.Fd()),
		Program: prog,
		Attach:  h.attach,
	})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("attaching %s to %s: %w: %w",
			h.program, opts.Cgroup, ErrExclusive, err)
	}
	if err != nil {
		return describe(fmt.Errorf("attaching %s to %s: %w", h.program, opts.Cgroup, err))
	}
	// The pin keeps the link when this process ends.
	undo.hold(raw)
	path := filepath.Join(opts.linksDir(), h.program)
	if err := raw.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pinning %s: %w", path, err), raw.Detach())
	}
	undo.add(func() error { return detach(raw) })
	opts.changed(ActionAttach, h.program)
	opts.Logger.Debug("attached", "program", h.program)
	return nil
}

// detachHook detaches a hook, if it is attached.
func detachHook(opts Options, h hook) error {
	l, _, err := openLink(opts, h)
	if err != nil || l == nil {
		return err
	}
	defer l.Close()
	if !opts.DryRun {
		if err := detach(l); err != nil {
			return fmt.Errorf("detaching %s: %w", h.program, err)
		}
	}
	opts.changed(ActionDetach, h.program)
	opts.Logger.Debug("detached", "program", h.program)
	return nil
}

func replaceProgram(opts Options, h hook, l link.Link, prog *ebpf.Program, undo *undoer) error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("link of %s: %w", h.program, err)
	}
	// Held open until the call is over: the update drops the last reference to it.
	old, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return describe(fmt.Errorf("opening the program that %s replaces: %w", h.program, err))
	}
	undo.hold(old)
	if opts.DryRun {
		opts.changed(ActionReplace, h.program)
		return nil
	}
	if err := l.Update(prog); err != nil {
		return fmt.Errorf("replacing %s: %w", h.program, err)
	}
	undo.add(func() error { return l.Update(old) })
	opts.changed(ActionReplace, h.program)
	return nil
}
