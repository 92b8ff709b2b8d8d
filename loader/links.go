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
	UpdateArgs(link.RawLinkUpdateOptions) error
}

func (o Options) linkPath(h hook) string { return filepath.Join(o.linksDir(), h.program) }

// openLink opens a pinned link of a hook; nil if there is none. It makes sure that the link is what
// its name says: the kernel lets a link take a program of another hook (and nothing works). A link
// that is not live was detached, by an unload that was cut short or with its cgroup.
func openLink(opts Options, h hook, path string) (l cgroupLink, live bool, err error) {
	pinned, err := openPinnedLink(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	live, err = checkLink(opts, h, pinned)
	if err != nil {
		pinned.Close()
		return nil, false, fmt.Errorf("%s: %w", path, err)
	}
	return pinned.(cgroupLink), live, nil
}

func checkLink(opts Options, h hook, l link.Link) (live bool, err error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	cgroup := info.Cgroup()
	if cgroup == nil {
		return false, fmt.Errorf("%w: a link of type %d", ErrForeignLink, info.Type)
	}
	if ebpf.AttachType(cgroup.AttachType) != h.attach {
		return false, fmt.Errorf("%w: attached as %v", ErrForeignLink, ebpf.AttachType(cgroup.AttachType))
	}
	if cgroup.CgroupId == 0 {
		return false, nil
	}
	var st unix.Stat_t
	err = unix.Stat(opts.Cgroup, &st)
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		return false, fmt.Errorf("cgroup %s: %w", opts.Cgroup, err)
	// A cgroup's id is the inode number of its directory.
	case err == nil && cgroup.CgroupId == st.Ino:
		return true, nil
	}
	gone, err := cgroupIsGone(cgroup.CgroupId)
	if err != nil {
		return false, err
	}
	if !gone {
		return false, fmt.Errorf("%w: attached to another cgroup than %s", ErrForeignLink, opts.Cgroup)
	}
	return false, nil
}

// onRemovedCgroup tells whether a link is attached to a cgroup that was removed, and whose sockets live on.
func onRemovedCgroup(l link.Link) (id uint64, gone bool, err error) {
	info, err := l.Info()
	if err != nil {
		return 0, false, err
	}
	cgroup := info.Cgroup()
	if cgroup == nil || cgroup.CgroupId == 0 {
		return 0, false, nil
	}
	gone, err = cgroupIsGone(cgroup.CgroupId)
	return cgroup.CgroupId, gone, err
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

// The links to cgroups that were removed are kept here as long as those have sockets, which go on with them.
func (o Options) asideDir() string { return filepath.Join(o.PinsDir, "removed_cgroups") }

// setAside makes way for a new link: one to a cgroup that was removed is kept aside, any other is dead.
func setAside(opts Options, s *seat, undo *undoer) error {
	path := opts.linkPath(s.hook)
	if s.link != nil {
		id, gone, err := onRemovedCgroup(s.link)
		if err != nil {
			return err
		}
		if gone {
			if err := makeDir(opts, opts.asideDir(), undo); err != nil {
				return err
			}
			aside := filepath.Join(opts.asideDir(), fmt.Sprintf("%s_%d", s.program, id))
			if err := os.Rename(path, aside); err != nil {
				return err
			}
			undo.add(func() error { return os.Rename(aside, path) })
			return nil
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the dead link of %s: %w", s.program, err)
	}
	return nil
}

// cleanAside removes the links that were set aside: all of them, or those that are dead by now.
func cleanAside(opts Options, all bool) error {
	dir := opts.asideDir()
	links, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	left := 0
	for _, file := range links {
		path := filepath.Join(dir, file.Name())
		l, err := openPinnedLink(path)
		if err != nil {
			return err
		}
		_, attached, err := onRemovedCgroup(l)
		if err == nil && all && attached && !opts.dryRun {
			err = l.Detach()
		}
		l.Close()
		if err != nil {
			return err
		}
		if attached && !all {
			left++
			continue
		}
		if err := opts.removePin(path); err != nil {
			return err
		}
	}
	if left > 0 {
		return nil
	}
	return opts.removePin(dir)
}

// pinAgain pins a link that another agent has pinned elsewhere.
func pinAgain(l link.Link, path string) error {
	info, err := l.Info()
	if err != nil {
		return err
	}
	// By its id: a link that was opened by its pin would be moved, not pinned once more.
	again, err := link.NewFromID(info.ID)
	if err != nil {
		return err
	}
	defer again.Close()
	return again.Pin(path)
}
