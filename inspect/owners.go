// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// addOwners finds out which processes have the sockets open, in one pass over their descriptors.
func addOwners(ctx context.Context, sockets []Socket) error {
	byInode := make(map[uint64]*Socket, len(sockets))
	for i := range sockets {
		if inode := sockets[i].Inode; inode != 0 {
			byInode[inode] = &sockets[i]
		}
	}
	if len(byInode) == 0 {
		return nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("looking for the owners of sockets: %w", err)
	}
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return err
		}
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		var owner *Process
		for inode := range socketInodes(pid) {
			s := byInode[inode]
			if s == nil {
				continue
			}
			if owner == nil {
				owner = &Process{ID: pid, Command: command(pid)}
			}
			s.Owners = append(s.Owners, *owner)
		}
	}
	for i := range sockets {
		slices.SortFunc(sockets[i].Owners, func(a, b Process) int { return cmp.Compare(a.ID, b.ID) })
	}
	return nil
}

// socketInodes returns the sockets that a process has open; none if it is gone or not ours to see.
func socketInodes(pid int) map[uint64]bool {
	dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	fds, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	inodes := make(map[uint64]bool)
	target := make([]byte, 64)
	for _, fd := range fds {
		n, err := unix.Readlinkat(int(dir.Fd()), fd, target)
		if err != nil {
			continue
		}
		number, ok := strings.CutPrefix(string(target[:n]), "socket:[")
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
		if err == nil {
			inodes[inode] = true
		}
	}
	return inodes
}

// command returns the name of a process's program, nothing if it is gone.
func command(pid int) string {
	comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(comm), "\n")
}
