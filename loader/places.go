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
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && wait != 0 {
		return waitForLock(ctx, f, dir, wait)
	}
	return locked(f, dir, err)
}

// waitForLock waits in the kernel's queue, which a process that polls would never be served from.
func waitForLock(ctx context.Context, f *os.File, dir string, wait time.Duration) (unlock func(), err error) {
	var timeout <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout = timer.C
	}
	done := make(chan error, 1)
	go func() { done <- flock(f, unix.LOCK_EX) }()
	select {
	case err = <-done:
		return locked(f, dir, err)
	case <-timeout:
		err = fmt.Errorf("%s: %w", dir, ErrLocked)
	case <-ctx.Done():
		err = fmt.Errorf("waiting for the lock of %s: %w", dir, ctx.Err())
	}
	// The call cannot be interrupted: when the lock comes after all, it is given back at once.
	go func() {
		<-done
		f.Close()
	}()
	return nil, err
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// locked is the outcome of taking the lock.
func locked(f *os.File, dir string, err error) (unlock func(), _ error) {
	switch {
	case err == nil && sameDir(f, dir):
		return func() { f.Close() }, nil
	case err == nil:
		// Removed by the one who had the lock.
		err = fmt.Errorf("%s: %w", dir, ErrNotLoaded)
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("%s: %w", dir, ErrLocked)
	default:
		err = fmt.Errorf("locking %s: %w", dir, err)
	}
	f.Close()
	return nil, err
}

func sameDir(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
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
