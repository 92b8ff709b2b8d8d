// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// testStateFrequently (BPF_F_TEST_STATE_FREQ) has the verifier compare states at every instruction where it can, as
// it otherwise does in longer programs only.
const testStateFrequently = 1 << 3

// PreciseVerifier tells whether the verifier tracks values in a caller's stack that a function reads
// through a pointer. Before Linux 6.8 it does not, and removes code that is not dead.
//
// PreciseVerifier runs a program in which this happens: a function compares the value behind its pointer with the
// constant with which the caller has compared it before.
func PreciseVerifier() (bool, error) {
	const (
		compared  = 20
		different = 21
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Flags: testStateFrequently,
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // the length of the packet
			asm.JNE.Imm(asm.R6, compared, "join"),
			asm.StoreMem(asm.R10, -8, asm.R6, asm.DWord).WithSymbol("join"),
			asm.Mov.Reg(asm.R1, asm.R10),
			asm.Add.Imm(asm.R1, -8),
			asm.Call.Label("is_compared"),
			asm.Return(),

			asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord).WithSymbol("is_compared"),
			asm.Mov.Imm(asm.R0, 1),
			asm.JEq.Imm(asm.R2, compared, "out"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return().WithSymbol("out"),
		},
	})
	if err != nil {
		return false, fmt.Errorf("probing for what the verifier knows: %w", err)
	}
	defer prog.Close()
	for length, want := range map[int]uint32{compared: 1, different: 0} {
		got, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, length)})
		if err != nil {
			return false, fmt.Errorf("probing for what the verifier knows: %w", err)
		}
		if got != want {
			return false, nil
		}
	}
	return true, nil
}
