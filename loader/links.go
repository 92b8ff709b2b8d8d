// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// cgroupLink is what can be done with the link of a cgroup.
type cgroupLink interface {
	link.Link
	Detach() error
	UpdateArgs(link.RawLinkUpdateOptions) error
}

func (o Options) linksDir() string { return filepath.Join(o.PinsDir, "links") }

func (o Options) linkPath(h hook) string { return filepath.Join(o.linksDir(), h.program) }

// The programs that were replaced in a takeover are pinned in this directory, each under the name of
// ours. They are pinned before they are replaced, so that they survive this process at any point; a
// hook is taken over, or about to be, as long as its former program is pinned.
func (o Options) formerDir() string { return filepath.Join(o.PinsDir, "former") }

func (o Options) formerPath(h hook) string { return filepath.Join(o.formerDir(), h.program) }

// The links to cgroups that were removed are kept here as long as those have sockets, which go on with them.
func (o Options) removedDir() string { return filepath.Join(o.PinsDir, "removed_cgroups") }

// readLink finds out about the link that is pinned at a path; its id is 0 if nothing is. A link that is not what
// its name says has an error: the kernel lets a link take a program of another hook (and nothing works).
// With h nil it may be on any hook.
func readLink(opts Options, path string, h *hook) (linkState, error) {
	l, err := openPinnedLink(path)
	if errors.Is(err, os.ErrNotExist) {
		return linkState{}, nil
	}
	if errors.Is(err, unix.EROFS) {
		return linkState{path: path, hidden: true}, nil
	}
	if err != nil {
		return linkState{}, err
	}
	defer l.Close()
	state, err := aboutLink(l)
	state.path = path
	if err != nil {
		return state, err
	}
	foreign := func(format string, args ...any) (linkState, error) {
		state.err = fmt.Errorf("%s: %w: "+format, append([]any{path, ErrForeignLink}, args...)...)
		return state, nil
	}
	if state.hook == 0 {
		return foreign("not attached to a cgroup's sockets")
	}
	if h != nil && state.hook != h.attach {
		return foreign("attached as %v", state.hook)
	}
	if state.cgroup == 0 {
		return state, nil
	}
	var st unix.Stat_t
	err = unix.Stat(opts.Cgroup, &st)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return state, fmt.Errorf("cgroup %s: %w", opts.Cgroup, err)
	}
	// A cgroup's id is the inode number of its directory.
	if err == nil && state.cgroup == st.Ino {
		state.live = true
		return state, nil
	}
	if state.removed, err = cgroupIsGone(state.cgroup); err != nil {
		return state, err
	}
	if !state.removed && h != nil {
		return foreign("attached to another cgroup than %s", opts.Cgroup)
	}
	return state, nil
}

// aboutLink is what the kernel says of a link; its hook is 0 if it is not one to a cgroup.
func aboutLink(l link.Link) (linkState, error) {
	info, err := l.Info()
	if err != nil {
		return linkState{}, fmt.Errorf("reading about a link: %w", present(err))
	}
	state := linkState{id: info.ID, program: info.Program}
	if cgroup := info.Cgroup(); cgroup != nil {
		state.hook, state.cgroup = ebpf.AttachType(cgroup.AttachType), cgroup.CgroupId
	}
	return state, nil
}

// cgroupLinks are all links to cgroups, wherever they are pinned, if anywhere.
func cgroupLinks() ([]linkState, error) {
	all := []linkState{}
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		state, err := aboutLink(it.Link)
		if err != nil {
			return nil, err
		}
		if state.hook != 0 {
			all = append(all, state)
		}
	}
	if err := it.Err(); err != nil {
		return nil, describe(fmt.Errorf("looking through the links: %w", err))
	}
	return all, nil
}

// fileIDKernfs says of a file handle that it is the id of a directory of the cgroup2 hierarchy (FILEID_KERNFS).
const fileIDKernfs = 0xfe

// cgroupIsGone tells whether there is no cgroup with this id any more. One whose directory was removed is there
// for the kernel as long as it has sockets.
func cgroupIsGone(id uint64) (bool, error) {
	root, err := FindCgroup2()
	if err != nil {
		return false, err
	}
	dir, err := os.Open(root)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	handle := unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), handle, unix.O_RDONLY|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESTALE):
		return true, nil
	case errors.Is(err, unix.EPERM):
		return false, nil // it takes CAP_DAC_READ_SEARCH
	case err != nil:
		return false, fmt.Errorf("looking for cgroup %d: %w", id, err)
	}
	unix.Close(fd)
	return false, nil
}
