// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// hookTypes are the hooks that are measured, by the names that the programs have after "revsk_".
var hookTypes = map[string]ebpf.AttachType{
	"connect4":     ebpf.AttachCGroupInet4Connect,
	"connect6":     ebpf.AttachCGroupInet6Connect,
	"sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
	"sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
	"recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
	"recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
	"getpeername4": ebpf.AttachCgroupInet4GetPeername,
	"getpeername6": ebpf.AttachCgroupInet6GetPeername,
	"release":      ebpf.AttachCgroupInetSockRelease,
	"post_bind4":   ebpf.AttachCGroupInet4PostBind,
	"post_bind6":   ebpf.AttachCGroupInet6PostBind,
}

// attachFloor attaches an empty program to each hook. That, and the clock of the kernel's statistics,
// is the floor under every program. It is attached until the links are closed, or garbage.
func attachFloor(cgroup string) (map[string]*ebpf.Program, []link.Link, error) {
	progs := make(map[string]*ebpf.Program)
	var links []link.Link
	for hook, attach := range hookTypes {
		spec := &ebpf.ProgramSpec{
			Type:         ebpf.CGroupSockAddr,
			AttachType:   attach,
			License:      "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		}
		switch attach {
		case ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind:
			spec.Type = ebpf.CGroupSock
		}
		prog, err := ebpf.NewProgram(spec)
		if err != nil {
			return nil, nil, fmt.Errorf("loading an empty program for %s: %w", hook, err)
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: prog})
		if err != nil {
			return nil, nil, fmt.Errorf("attaching to %s: %w", hook, err)
		}
		progs[hook] = prog
		links = append(links, l)
	}
	return progs, links, nil
}
