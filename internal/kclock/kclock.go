// SPDX-License-Identifier: Apache-2.0

// Package kclock reads the clocks that BPF programs read.
package kclock

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Monotonic is CLOCK_MONOTONIC as BPF programs read it. The clock of a process can differ: a time namespace,
// which containers may have, sets it forward or back.
func Monotonic() (time.Duration, error) { return read(asm.FnKtimeGetNs) }

// Boot is CLOCK_BOOTTIME as BPF programs read it.
func Boot() (time.Duration, error) { return read(asm.FnKtimeGetBootNs) }

func read(clock asm.BuiltinFunc) (now time.Duration, err error) {
	result, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return 0, fmt.Errorf("making a map for the time: %w", err)
	}
	defer func() { err = errors.Join(err, result.Close()) }()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SocketFilter,
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			clock.Call(),
			asm.LoadMapValue(asm.R1, result.FD(), 0),
			asm.StoreMem(asm.R1, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return 0, fmt.Errorf("loading a program that reads the clock: %w", err)
	}
	defer func() { err = errors.Join(err, prog.Close()) }()
	frame := make([]byte, 14) // as large as an Ethernet header
	if _, err := prog.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	var ns uint64
	if err := result.Lookup(uint32(0), &ns); err != nil {
		return 0, fmt.Errorf("reading the time: %w", err)
	}
	return time.Duration(ns), nil
}
