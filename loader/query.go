// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
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

// mostPrograms is the kernel's limit of programs on one hook of a cgroup (BPF_CGROUP_MAX_PROGS).
const mostPrograms = 64

// attachments are the programs on a hook of one cgroup, be they attached by a link or without one.
type attachments struct {
	flags    uint32 // BPF_F_ALLOW_MULTI or BPF_F_ALLOW_OVERRIDE, for all of them
	programs []ebpf.ProgramID
	// revision changes with every change on the hook; 0 where the kernel does not count them.
	revision uint64
}

func queryHook(dir string, h hook) (attachments, error) {
	f, err := os.Open(dir)
	if err != nil {
		return attachments{}, err
	}
	defer f.Close()
	var ids [mostPrograms]ebpf.ProgramID
	attr := queryAttr{
		targetFD:   uint32(f.Fd()),
		attachType: uint32(h.attach),
		progIDs:    uint64(uintptr(unsafe.Pointer(&ids))),
		progCount:  mostPrograms,
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(f)
	runtime.KeepAlive(&ids)
	if errno != 0 {
		return attachments{}, errno
	}
	return attachments{attr.attachFlags, ids[:attr.progCount], attr.revision}, nil
}

// queryOwn is queryHook of the datapath's cgroup.
func queryOwn(opts Options, h hook) (attachments, error) {
	found, err := queryHook(opts.Cgroup, h)
	if err != nil {
		return found, describe(fmt.Errorf("asking what is attached to %s: %w", opts.Cgroup, err))
	}
	return found, nil
}

// heldByLinks returns the programs on a hook of the cgroup that are attached by a link.
func heldByLinks(opts Options, h hook) (map[ebpf.ProgramID]bool, error) {
	held := make(map[ebpf.ProgramID]bool)
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			return nil, fmt.Errorf("link %d: %w", it.ID, err)
		}
		if info.Type != link.CgroupType {
			continue
		}
		if live, err := checkLink(opts, h, it.Link); err == nil && live {
			held[info.Program] = true
		} else if err != nil && !errors.Is(err, ErrForeignLink) {
			return nil, err
		}
	}
	if err := it.Err(); err != nil {
		return nil, describe(fmt.Errorf("looking through the links: %w", err))
	}
	return held, nil
}

// findLink returns the link that holds a program of the reference's on a hook of the cgroup, wherever it is
// pinned, if anywhere; nil if there is none.
func findLink(opts Options, h hook) (cgroupLink, error) {
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			return nil, fmt.Errorf("link %d: %w", it.ID, present(err))
		}
		if info.Type != link.CgroupType {
			continue
		}
		live, err := checkLink(opts, h, it.Link)
		if err != nil && !errors.Is(err, ErrForeignLink) {
			return nil, err
		}
		if err != nil || !live {
			continue
		}
		o, err := describeProgram(info.Program)
		if err != nil {
			return nil, err
		}
		if h.isReference(o) {
			return it.Take().(cgroupLink), nil
		}
	}
	if err := it.Err(); err != nil {
		return nil, describe(fmt.Errorf("looking through the links: %w", err))
	}
	return nil, nil
}

// occupant is a program on a hook.
type occupant struct {
	id   ebpf.ProgramID // 0: none
	name string         // as the kernel keeps it
	tag  string
}

func (o occupant) String() string { return fmt.Sprintf("%s (program %d)", o.name, o.id) }

// describeProgram finds out what a program is called. It returns the zero occupant if it is gone.
func describeProgram(id ebpf.ProgramID) (occupant, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return occupant{}, nil
	}
	if err != nil {
		return occupant{}, describe(fmt.Errorf("opening program %d: %w", id, err))
	}
	defer prog.Close()
	return occupantOf(prog)
}

func occupantOf(prog *ebpf.Program) (occupant, error) {
	info, err := prog.Info()
	if err != nil {
		return occupant{}, fmt.Errorf("reading about a program: %w", err)
	}
	id, _ := info.ID()
	return occupant{id, info.Name, info.Tag}, nil
}
