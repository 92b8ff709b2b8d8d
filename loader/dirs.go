// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// checkDirs makes sure that nobody else could have put something in place of our pins: every directory from
// the root of the BPF file system to dir belongs to root or to this user, and nobody else can write to
// it. The root itself, which is mounted with mode 1777 by default, may have the sticky bit instead. Returns an
// error wrapping [ErrUnsafeDir]. Directories that do not exist are left out.
func checkDirs(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		if errors.Is(err, os.ErrNotExist) && dir != "/" {
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s: %w: it is %s", dir, ErrUnsafeDir, kindOfFile(info.Mode()))
		}
		top, err := isMountRoot(dir)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: dir, Err: err}
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s: %w: it belongs to user %d", dir, ErrUnsafeDir, st.Uid)
		}
		if st.Mode&0o022 != 0 && !(top && st.Mode&unix.S_ISVTX != 0) {
			return fmt.Errorf("%s: %w: its mode is %04o", dir, ErrUnsafeDir, st.Mode&0o7777)
		}
		if top {
			return nil
		}
	}
}

// isMountRoot tells whether a directory is where its file system is mounted.
func isMountRoot(dir string) (bool, error) {
	var st, parent unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if err := unix.Lstat(filepath.Dir(dir), &parent); err != nil {
		return false, &os.PathError{Op: "lstat", Path: filepath.Dir(dir), Err: err}
	}
	return st.Dev != parent.Dev || dir == filepath.Dir(dir), nil
}

// mkdirAll creates a directory and its parents, for the owner only. It returns those that it has made; after
// an error there are none.
func mkdirAll(dir string) (made []string, err error) {
	for d := dir; !exists(d); d = filepath.Dir(d) {
		made = append(made, d)
	}
	if err = os.MkdirAll(dir, 0o700); err == nil {
		return made, nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: %w", ErrPermission, err)
	}
	made = slices.DeleteFunc(made, func(dir string) bool { return !exists(dir) })
	return nil, errors.Join(err, removeAll(made))
}

// removeAll removes what mkdirAll has made.
func removeAll(made []string) error {
	var errs []error
	for _, dir := range made {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}

// checkWritable finds out whether dir, which does not exist, could be made.
func checkWritable(dir string) error {
	parent := filepath.Dir(dir)
	for !exists(parent) && parent != "/" {
		parent = filepath.Dir(parent)
	}
	if err := unix.Access(parent, unix.W_OK); err != nil {
		return describe(fmt.Errorf("making %s: %w", dir, &os.PathError{Op: "access", Path: parent, Err: err}))
	}
	return nil
}

// exists tells whether there is something, be it that this process may not see it.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
