// SPDX-License-Identifier: Apache-2.0

// Package probe finds out by trying what a kernel can do.
package probe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// unknownHelper are the words of verifiers, of 5.10 to 7.2, that do not know a helper or do not let a
// program of this type call it.
var unknownHelper = []string{"invalid func", "unknown func", "cannot use helper"}

// Helper tells whether programs of a type may call a helper. It gives the verifier a program that calls the helper
// with zeroes. If the verifier refuses it for another reason, it knows the helper. (The probe of
// the BPF library relies on one errno, which newer kernels also return for other reasons.)
func Helper(prog ebpf.ProgramType, helper asm.BuiltinFunc) (bool, error) {
	spec := &ebpf.ProgramSpec{Type: prog, License: "Dual BSD/GPL"}
	if prog == ebpf.CGroupSockAddr {
		spec.AttachType = ebpf.AttachCGroupInet4Connect
	}
	for _, r := range []asm.Register{asm.R1, asm.R2, asm.R3, asm.R4, asm.R5} {
		spec.Instructions = append(spec.Instructions, asm.Mov.Imm(r, 0))
	}
	spec.Instructions = append(spec.Instructions, helper.Call(), asm.Mov.Imm(asm.R0, 1), asm.Return())
	p, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogLevel: ebpf.LogLevelBranch})
	if err == nil {
		return true, p.Close()
	}
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES)) && len(refused.Log) > 0 {
		return !isUnknown(refused.Log), nil
	}
	return false, fmt.Errorf("probing for %v: %w", helper, err)
}

func isUnknown(log []string) bool {
	return slices.ContainsFunc(log, func(line string) bool {
		return slices.ContainsFunc(unknownHelper, func(words string) bool { return strings.Contains(line, words) })
	})
}
