// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FindCgroup2 returns where the cgroup2 hierarchy is mounted, /sys/fs/cgroup on most machines and
// /sys/fs/cgroup/unified on hybrid ones. Returns an error wrapping [ErrNoCgroup2].
func FindCgroup2() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	// proc(5): ID parent major:minor root mountpoint options [optional]... - type source options
	for sc := bufio.NewScanner(f); sc.Scan(); {
		mount, fs, _ := strings.Cut(sc.Text(), " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(fs, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", ErrNoCgroup2
}

func fsMagic(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Type), nil
}

func checkCgroup(path string) error {
	magic, err := fsMagic(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && magic != unix.CGROUP2_SUPER_MAGIC {
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
// no plain files). It ends with the process. Returns an error wrapping [ErrLocked].
func lock(ctx context.Context, dir string, wait bool) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && !sameDir(f, dir) {
			// Removed by the one who had the lock.
			f.Close()
			return nil, fmt.Errorf("%s: %w", dir, ErrNotLoaded)
		}
		if err == nil {
			return func() { f.Close() }, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) && wait {
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
		}
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
}

func sameDir(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
