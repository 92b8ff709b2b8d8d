// SPDX-License-Identifier: Apache-2.0

// Package attached asks the kernel which programs are attached to a cgroup. Minimum kernel: Linux 4.15.
package attached

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// queryAttr is the part of union bpf_attr that BPF_PROG_QUERY uses.
type queryAttr struct {
	targetFD    uint32
	attachType  uint32
	queryFlags  uint32
	attachFlags uint32 // out
	progIDs     uint64
	progCount   uint32 // in: room at progIDs; out
	_           uint32
	progFlags   uint64
	linkIDs     uint64
	linkFlags   uint64
	revision    uint64 // out
}

// most is the kernel's limit of programs on one hook of a cgroup (BPF_CGROUP_MAX_PROGS).
const most = 64

// Programs are the programs on a hook of one cgroup, attached with or without a link.
type Programs struct {
	// Flags are BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE or 0, for all of them.
	Flags uint32
	IDs   []ebpf.ProgramID
	// Revision changes with every change on the hook; 0 where the kernel does not count them.
	Revision uint64
}

// To returns the programs on a hook of the cgroup at dir itself, not of those above it.
func To(dir string, hook ebpf.AttachType) (Programs, error) {
	f, err := os.Open(dir)
	if err != nil {
		return Programs{}, err
	}
	defer f.Close()
	return On(f, hook)
}

// On returns the programs on a hook of a cgroup whose directory is open.
func On(f *os.File, hook ebpf.AttachType) (Programs, error) {
	var ids [most]ebpf.ProgramID
	attr := queryAttr{
		targetFD:   uint32(f.Fd()),
		attachType: uint32(hook),
		progIDs:    uint64(uintptr(unsafe.Pointer(&ids))),
		progCount:  most,
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(f)
	runtime.KeepAlive(&ids)
	if errno != 0 {
		return Programs{}, fmt.Errorf("asking what is attached to %s: %w", f.Name(), errno)
	}
	return Programs{attr.attachFlags, ids[:attr.progCount], attr.revision}, nil
}

// Describe returns words for a program, with its name if it is known.
func Describe(id ebpf.ProgramID) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program %d", id)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprintf("program %d", id)
	}
	return fmt.Sprintf("program %d (%q)", id, info.Name)
}
