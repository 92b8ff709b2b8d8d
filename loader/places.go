// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/cgroup2"
	"github.com/revsk/revsk/internal/filelock"
)

// FindCgroup2 returns where the cgroup2 hierarchy is mounted, /sys/fs/cgroup on most machines and
// /sys/fs/cgroup/unified on hybrid ones. Returns an error wrapping [ErrNoCgroup2].
func FindCgroup2() (string, error) { return cgroup2.Find() }

func fsMagic(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Type), nil
}

func checkCgroup(path string) error {
	magic, err := fsMagic(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, ErrNoSuchCgroup)
	}
	if err == nil && magic != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("cgroup %s: %w", path, ErrNoCgroup2)
	}
	return err
}

// checkBPFFS finds out whether path is, or would be created, on a BPF file system.
func checkBPFFS(path string) error {
	for dir := path; ; dir = filepath.Dir(dir) {
		magic, err := fsMagic(dir)
		if errors.Is(err, os.ErrNotExist) && dir != "/" {
			continue
		}
		if err == nil && magic != unix.BPF_FS_MAGIC {
			return fmt.Errorf("%s: %w", path, ErrNoBPFFS)
		}
		return err
	}
}

// lock takes the exclusive lock of a directory (flock on the directory itself: a BPF file system has
// no plain files). It ends with the process. Returns an error wrapping [ErrLocked] if another process has it
// for longer than wait.
func lock(ctx context.Context, dir string, wait time.Duration) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err == nil && st.Flags&unix.ST_RDONLY != 0 {
		f.Close()
		return nil, fmt.Errorf("changing %s: %w", dir, unix.EROFS)
	}
	err = filelock.Take(ctx, f, wait, nil)
	if errors.Is(err, filelock.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	inPlace, err := filelock.InPlace(f)
	if err == nil && !inPlace { // removed by the one who had the lock
		err = fmt.Errorf("%s: %w", dir, ErrNotLoaded)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// isLockedByOthers tells whether another process has the lock of a directory, without getting into its way.
func isLockedByOthers(dir string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	locks, err := os.ReadFile("/proc/locks")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // a kernel without file locks
	}
	if err != nil {
		return false, err
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// proc_locks(5): NUMBER: TYPE MODE ACCESS PID MAJOR:MINOR:INODE START END
		f := strings.Fields(line)
		if len(f) == 8 && f[1] == "FLOCK" && f[5] == file && f[4] != strconv.Itoa(os.Getpid()) {
			return true, nil
		}
	}
	return false, nil
}
