// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/revsk/revsk/internal/openfiles"
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
	files, err := openfiles.Sockets(ctx)
	if err != nil {
		return fmt.Errorf("looking for the owners of sockets: %w", err)
	}
	owners := make(map[int]Process)
	for _, file := range files {
		s := byInode[file.Inode]
		if s == nil {
			continue
		}
		owner, ok := owners[file.PID]
		if !ok {
			owner = Process{ID: file.PID, Command: command(file.PID)}
			owners[file.PID] = owner
		}
		s.Owners = append(s.Owners, owner)
	}
	for i := range sockets {
		owners := sockets[i].Owners
		slices.SortFunc(owners, func(a, b Process) int { return cmp.Compare(a.ID, b.ID) })
		// A process may have several descriptors of it.
		sockets[i].Owners = slices.Compact(owners)
	}
	return nil
}

// command returns the name of a process's program, nothing if it is gone.
func command(pid int) string {
	comm, err := os.ReadFile(proc.Path(pid, "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(comm), "\n")
}
