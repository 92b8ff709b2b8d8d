// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// MPTCP tells whether the hooks can tell the connections of MPTCP sockets: since Linux 5.19, if it has MPTCP. This process must be
// allowed to load programs that read the kernel's memory (CAP_PERFMON).
func MPTCP() (bool, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, contextSocket, asm.DWord),
			asm.JEq.Imm(asm.R1, 0, "end"),
			asm.FnSkcToMptcpSock.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("end"),
			asm.Return(),
		},
	})
	if err == nil {
		return true, p.Close()
	}
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) && len(refused.Log) > 0 {
		return false, nil
	}
	return false, fmt.Errorf("probing for MPTCP: %w", err)
}

// contextSocket is the offset of the socket in struct bpf_sock_addr.
const contextSocket = 64
