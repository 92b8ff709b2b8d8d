// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/revsk/revsk/internal/openfiles"
	"github.com/revsk/revsk/internal/proc"
)

// ownerTable says which processes have a socket open. It is read in one pass over all descriptors, when it is
// needed first.
type ownerTable struct {
	files     []ownedFile // sorted by inode and process
	processes map[int]Process
	// read says that it is not older than what is asked for.
	read bool
}

type ownedFile struct {
	inode uint64
	pid   int32
}

// expire says that sockets are asked for from now on that may have been opened since the table was read. It
// is read anew if one of them is not in it.
func (t *ownerTable) expire() { t.read = false }

// of returns the processes that have the socket with this inode open, sorted by id.
func (t *ownerTable) of(ctx context.Context, inode uint64) ([]Process, error) {
	if inode == 0 {
		return nil, nil
	}
	owners := t.find(inode)
	if len(owners) == 0 && !t.read {
		if err := t.load(ctx); err != nil {
			return nil, err
		}
		owners = t.find(inode)
	}
	return owners, nil
}

func (t *ownerTable) load(ctx context.Context) error {
	open, err := openfiles.Sockets(ctx)
	if err != nil {
		return fmt.Errorf("looking for the owners of sockets: %w", err)
	}
	t.files = slices.Grow(t.files[:0], len(open))
	for _, f := range open {
		t.files = append(t.files, ownedFile{f.Inode, int32(f.PID)})
	}
	slices.SortFunc(t.files, func(a, b ownedFile) int {
		return cmp.Or(cmp.Compare(a.inode, b.inode), cmp.Compare(a.pid, b.pid))
	})
	// A process may have several descriptors of a socket.
	t.files = slices.Compact(t.files)
	t.processes = make(map[int]Process)
	t.read = true
	return nil
}

func (t *ownerTable) find(inode uint64) (owners []Process) {
	i := sort.Search(len(t.files), func(i int) bool { return t.files[i].inode >= inode })
	for ; i < len(t.files) && t.files[i].inode == inode; i++ {
		pid := int(t.files[i].pid)
		owner, ok := t.processes[pid]
		if !ok {
			owner = Process{ID: pid, Command: command(pid)}
			t.processes[pid] = owner
		}
		owners = append(owners, owner)
	}
	return owners
}

// command returns the name of a process's program, nothing if it is gone.
func command(pid int) string {
	comm, err := os.ReadFile(proc.Path(pid, "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(comm), "\n")
}
