// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/revsk/revsk/internal/attached"
)

// queryOwn returns the programs on a hook of the datapath's cgroup.
func queryOwn(opts Options, h hook) (attached.Programs, error) {
	found, err := attached.To(opts.Cgroup, h.attach)
	return found, describe(err)
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
