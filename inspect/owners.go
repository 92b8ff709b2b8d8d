// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/revsk/revsk/internal/proc"
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
	pids, err := proc.Processes()
	if err != nil {
		return fmt.Errorf("looking for the owners of sockets: %w", err)
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return err
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

// socketInodes returns the sockets that a process has open.
func socketInodes(pid int) map[uint64]bool {
	inodes := make(map[uint64]bool)
	for _, target := range proc.Files(pid) {
		if inode, ok := proc.Inode(target, "socket"); ok {
			inodes[inode] = true
		}
	}
	return inodes
}

// command returns the name of a process's program, nothing if it is gone.
func command(pid int) string {
	comm, err := os.ReadFile(proc.Path(pid, "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(comm), "\n")
}
