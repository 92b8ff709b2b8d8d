// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/attached"
)

// errHookRefused: the setsockopt hook cannot be attached beside the programs of others.
var errHookRefused = errors.New("the setsockopt hook cannot be attached")

// attachSockoptHook attaches the program for as long as the link is open. Returns an error wrapping
// errHookRefused, which names the program that is in the way: one that is attached for itself alone, to
// this cgroup or above; or one above that would no longer run for the sockets of this cgroup.
func attachSockoptHook(cgroup string, prog *ebpf.Program) (link.Link, error) {
	if err := checkSockoptPrograms(cgroup); err != nil {
		return nil, err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSetsockopt, Program: prog})
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: %w", errHookRefused, err)
	}
	if err != nil {
		return nil, fmt.Errorf("attaching a setsockopt hook to %s: %w", cgroup, err)
	}
	return l, nil
}

// checkSockoptPrograms looks for programs that allow no other beside them, from the cgroup up to the root
// as far as it is mounted.
func checkSockoptPrograms(cgroup string) error {
	dir, err := filepath.Abs(cgroup)
	if err != nil {
		return err
	}
	for ; isCgroup2(dir); dir = filepath.Dir(dir) {
		programs, err := attached.To(dir, ebpf.AttachCGroupSetsockopt)
		if err != nil {
			return err
		}
		switch {
		case len(programs.IDs) == 0:
			continue
		case programs.Flags&unix.BPF_F_ALLOW_MULTI != 0:
			return nil // what is above does not change
		default:
			return fmt.Errorf("%w: %s is attached to %s without BPF_F_ALLOW_MULTI", errHookRefused, attached.Describe(programs.IDs[0]), dir)
		}
	}
	return nil
}

func isCgroup2(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && int64(st.Type) == unix.CGROUP2_SUPER_MAGIC
}
