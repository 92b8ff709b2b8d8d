// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
)

// hook is a place on the cgroup where one of the programs is attached.
type hook struct {
	program string // also the name of the link's pin
	attach  ebpf.AttachType
	// reference is the program that the reference agent has there, and its pin of the link.
	reference string
	// wanted tells whether the features need the hook; nil: always.
	wanted func(*Features) bool
}

func (h hook) isWanted(f *Features) bool { return h.wanted == nil || h.wanted(f) }

// remembers tells whether its program writes or reads what sockets remember. Those that only a feature needs
// are about binding.
func (h hook) remembers() bool { return h.wanted == nil }

func nodePort(f *Features) bool    { return f.NodePort }
func healthCheck(f *Features) bool { return f.HealthCheck }

// hooks in the order in which they are attached and replaced: readers of the state first, then its
// writers, so that at no moment is a tuple written where the current readers do not look.
var hooks = []hook{
	{program: sock.SockProgRevskRecvmsg4, attach: ebpf.AttachCGroupUDP4Recvmsg, reference: "cil_sock4_recvmsg"},
	{program: sock.SockProgRevskRecvmsg6, attach: ebpf.AttachCGroupUDP6Recvmsg, reference: "cil_sock6_recvmsg"},
	{program: sock.SockProgRevskGetpeername4, attach: ebpf.AttachCgroupInet4GetPeername, reference: "cil_sock4_getpeername"},
	{program: sock.SockProgRevskGetpeername6, attach: ebpf.AttachCgroupInet6GetPeername, reference: "cil_sock6_getpeername"},
	{program: sock.SockProgRevskRelease, attach: ebpf.AttachCgroupInetSockRelease, reference: "cil_sock_release"},
	{program: sock.SockProgRevskConnect4, attach: ebpf.AttachCGroupInet4Connect, reference: "cil_sock4_connect"},
	{program: sock.SockProgRevskConnect6, attach: ebpf.AttachCGroupInet6Connect, reference: "cil_sock6_connect"},
	{program: sock.SockProgRevskSendmsg4, attach: ebpf.AttachCGroupUDP4Sendmsg, reference: "cil_sock4_sendmsg"},
	{program: sock.SockProgRevskSendmsg6, attach: ebpf.AttachCGroupUDP6Sendmsg, reference: "cil_sock6_sendmsg"},
	{program: sock.SockProgRevskPostBind4, attach: ebpf.AttachCGroupInet4PostBind, reference: "cil_sock4_post_bind", wanted: nodePort},
	{program: sock.SockProgRevskPostBind6, attach: ebpf.AttachCGroupInet6PostBind, reference: "cil_sock6_post_bind", wanted: nodePort},
	{program: sock.SockProgRevskBind4, attach: ebpf.AttachCGroupInet4Bind, reference: "cil_sock4_pre_bind", wanted: healthCheck},
	{program: sock.SockProgRevskBind6, attach: ebpf.AttachCGroupInet6Bind, reference: "cil_sock6_pre_bind", wanted: healthCheck},
}

// attachHook puts the program on its hook: into its seat in one atomic step, or into a link that is
// made. It registers how to undo that.
func attachHook(opts Options, s *seat, prog *ebpf.Program, undo *undoer) error {
	if err := opts.step("attach " + s.program); err != nil {
		return err
	}
	if s.live() {
		return s.put(opts, prog, undo)
	}
	if err := checkNotExclusive(opts.Cgroup, s.hook); err != nil {
		return err
	}
	if opts.dryRun {
		opts.changed(ActionAttach, s.program)
		return nil
	}
	// What an earlier load has left of a seat that is gone.
	if err := removeFormer(opts, s, undo); err != nil {
		return err
	}
	if err := setAside(opts, s, undo); err != nil {
		return err
	}
	path := opts.linkPath(s.hook)

	cgroup, err := os.Open(opts.Cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	raw, err := link.AttachRawLink(link.RawLinkOptions{
		Target:  int(cgroup.Fd()),
		Program: prog,
		Attach:  s.attach,
	})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("attaching %s to %s: %w: %w",
			s.program, opts.Cgroup, ErrExclusive, err)
	}
	if err != nil {
		return describe(fmt.Errorf("attaching %s to %s: %w", s.program, opts.Cgroup, err))
	}
	// The pin keeps the link when this process ends.
	undo.hold(raw)
	if err := raw.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pinning %s: %w", path, err), raw.Detach())
	}
	undo.add(func() error { return errors.Join(raw.Detach(), raw.Unpin()) })
	opts.changed(ActionAttach, s.program)
	opts.Logger.Debug("attached", "program", s.program)
	return nil
}
