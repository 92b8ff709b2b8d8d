// SPDX-License-Identifier: Apache-2.0

package loader

import (
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
	if err := unix.Stat(opts.Cgroup, &st); err != nil {
		return false, fmt.Errorf("cgroup %s: %w", opts.Cgroup, err)
	}
	// A cgroup's id is the inode number of its directory.
	if cgroup.CgroupId != st.Ino {
		return false, fmt.Errorf("%w: attached to another cgroup than %s", ErrForeignLink, opts.Cgroup)
	}
	return true, nil
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
