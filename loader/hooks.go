// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"github.com/cilium/ebpf"

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
