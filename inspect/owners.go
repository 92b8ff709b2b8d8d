// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/revsk/revsk/internal/openfiles"
	"github.com/revsk/revsk/internal/proc"
)

// ownerTable says which processes have a socket open. It is read in one pass over all descriptors, when it is
// needed first.
type ownerTable struct {
	// files are inode and process of each, sorted: of inodes of 32 bits, which is all that sockets have.
	files []uint64
	// alone are the processes as owners, by id.
	alone map[uint32][]Process
	// most is how many owners of a socket are kept; 0: all.
	most int
	// read says that it is not older than what is asked for.
	read bool
}

// expire says that sockets are asked for from now on that may have been opened since the table was read. It
// is read anew if one of them is not in it.
func (t *ownerTable) expire() { t.read = false }

// of returns the processes that have the socket with this inode open, sorted by id. The slice may be that of other
// sockets, too.
func (t *ownerTable) of(ctx context.Context, inode uint64) ([]Process, error) {
	if inode == 0 || inode > math.MaxUint32 {
		return nil, nil
	}
	owners := t.find(uint32(inode))
	if len(owners) == 0 && !t.read {
		if err := t.load(ctx); err != nil {
			return nil, err
		}
		owners = t.find(uint32(inode))
	}
	return owners, nil
}

func (t *ownerTable) load(ctx context.Context) error {
	t.files = slices.Grow(t.files[:0], openFiles())
	for f, err := range openfiles.Sockets(ctx) {
		if err != nil {
			return fmt.Errorf("looking for the owners of sockets: %w", err)
		}
		if f.Inode > math.MaxUint32 {
			continue
		}
		if len(t.files) == cap(t.files) {
			t.thin()
			t.files = slices.Grow(t.files, len(t.files)/2+1) // room for some before it is thinned again
		}
		t.files = append(t.files, f.Inode<<32|uint64(f.PID))
	}
	t.thin()
	t.alone = make(map[uint32][]Process)
	t.read = true
	return nil
}

// thin sorts the files, and leaves each process of a socket once, and no more processes of it than are kept.
func (t *ownerTable) thin() {
	slices.Sort(t.files)
	kept := t.files[:0]
	for _, f := range t.files {
		n := len(kept)
		if n > 0 && kept[n-1] == f {
			continue // a process may have several descriptors of a socket
		}
		if t.most == 0 || n < t.most || kept[n-t.most]>>32 != f>>32 {
			kept = append(kept, f)
		}
	}
	t.files = kept
}

// openFiles is how many files the machine has open, 0 if that is not known.
func openFiles() (n int) {
	text, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &n)
	}
	return n
}

func (t *ownerTable) find(inode uint32) (owners []Process) {
	i, _ := slices.BinarySearch(t.files, uint64(inode)<<32)
	for ; i < len(t.files) && uint32(t.files[i]>>32) == inode; i++ {
		pid := uint32(t.files[i])
		owner, ok := t.alone[pid]
		if !ok {
			owner = slices.Clip([]Process{{ID: int(pid), Command: command(int(pid))}})
			t.alone[pid] = owner
		}
		if owners == nil {
			owners = owner
		} else {
			owners = append(owners, owner...)
		}
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
