// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// What a program before ours has rejected changes nothing that a socket remembers.
func TestRejectedByAnotherProgram(t *testing.T) {
	if !haveHelper(t, ebpf.CGroupSockAddr, asm.FnGetRetval) {
		t.Log("this kernel does not tell (before Linux 5.18)")
		return
	}
	const notReference = "it does not look at what others reject"
	hold(t, either,
		rule{name: "the first connect of a socket", notReference: notReference, play: func(s *scene) {
			a := s.service()
			rejectBefore(s.T, a.front)
			require.ErrorIs(s, s.socket().tryConnect(a.front), unix.EPERM)
			assert.Equal(s, s.before.Stored, s.counters().Stored)
		}},
		rule{name: "what has no backend, whose error stays that of the other", notReference: notReference, play: func(s *scene) {
			a := s.serviceWithout()
			rejectBefore(s.T, a.front)
			require.ErrorIs(s, s.socket().tryConnect(a.front), unix.EPERM)
		}},
	)
	hold(t, udp,
		rule{name: "a connect to another service with the same backend", notReference: notReference, play: func(s *scene) {
			a := s.service()
			b := s.serviceAt(otherPort(a.front), a.backend)
			rejectBefore(s.T, b.front)
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(b.front), unix.EPERM)
			s.connected(x, a)
		}},
		rule{name: "a connect to the backend itself", notReference: notReference, play: func(s *scene) {
			a := s.service()
			rejectBefore(s.T, a.backend)
			x := s.socket()
			x.connect(a.front)
			require.ErrorIs(s, x.tryConnect(a.backend), unix.EPERM)
			same(s, a.front, x.peername(), "getpeername")
			assert.Equal(s, s.before.DroppedDirect, s.counters().DroppedDirect)
		}},
		rule{name: "a send to another service with the same backend", notReference: notReference, play: func(s *scene) {
			a := s.service()
			b := s.serviceAt(otherPort(a.front), a.backend)
			rejectBefore(s.T, b.front)
			x := s.socket()
			question := s.queue(x, a.front)
			require.ErrorIs(s, x.trySendTo(b.front, "rejected"), unix.EPERM)
			s.heard(x, question, a.backend, a.front)
			s.mayLeak = s.mode == legacy
		}},
	)
}

// rejectBefore moves the process to a cgroup below the sandbox's, where a program rejects connects and sends to
// an address's port: programs of the lower cgroup run first.
func rejectBefore(t *testing.T, to netip.AddrPort) {
	t.Helper()
	dir := filepath.Join(sandbox.Cgroup(), "rejects")
	require.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	for _, hook := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
		ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "rejects", Type: ebpf.CGroupSockAddr, AttachType: hook, License: "GPL",
			Instructions: asm.Instructions{
				asm.LoadMem(asm.R1, asm.R1, 24, asm.Word), // bpf_sock_addr.user_port
				asm.HostTo(asm.BE, asm.R1, asm.Half),
				asm.Mov.Imm(asm.R0, 1),
				asm.JNE.Imm(asm.R1, int32(to.Port()), "out"),
				asm.Mov.Imm(asm.R0, 0),
				asm.Return().WithSymbol("out"),
			},
		})
		require.NoError(t, err)
		l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: hook, Program: prog})
		prog.Close()
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, errors.Join(l.Detach(), l.Close())) })
	}
	enter := func(cgroup string) {
		require.NoError(t, os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0))
	}
	enter(dir)
	t.Cleanup(func() { enter(sandbox.Cgroup()) })
}
