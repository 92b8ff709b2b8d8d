// SPDX-License-Identifier: Apache-2.0

// Package proc reads from /proc which processes exist and which files they have open. It finds those
// that have a process id in the caller's namespace.
package proc

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes returns the ids of all processes.
func Processes() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	defer dir.Close()
	ids, err := numbers(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	return ids, nil
}

// Threads returns the ids of a process's threads; none if it is gone.
func Threads(pid int) []int {
	dir, err := os.Open(Path(pid, "task"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	ids, _ := numbers(dir)
	return ids
}

// Files iterates over the file descriptors of a process and their files, such as "socket:[4711]". It
// yields none if the process is gone or the caller may not look at it.
func Files(pid int) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		dir, err := os.Open(Path(pid, "fd"))
		if err != nil {
			return
		}
		defer dir.Close()
		fds, _ := numbers(dir)
		target := make([]byte, 256)
		for _, fd := range fds {
			n, err := unix.Readlinkat(int(dir.Fd()), strconv.Itoa(fd), target)
			if err == nil && !yield(fd, string(target[:n])) {
				return
			}
		}
	}
}

// Inode returns the number in the target of a link in /proc, such as 4711 of "socket:[4711]", if the target is
// of the kind.
func Inode(target, kind string) (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(target, kind+":[")
	if !ok {
		return 0, false
	}
	number, ok = strings.CutSuffix(number, "]")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(number, 10, 64)
	return inode, err == nil
}

// Path is a file in the directory of a process.
func Path(pid int, elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, elem...)...)
}

// numbers returns the entries of a directory that are numbers.
func numbers(dir *os.File) ([]int, error) {
	names, err := dir.Readdirnames(-1)
	var all []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			all = append(all, n)
		}
	}
	return all, err
}

// InFirstPIDNamespace tells whether the calling thread is in the kernel's first pid namespace, in which all processes are seen
// under the kernel's own numbers.
func InFirstPIDNamespace() (bool, error) {
	const first = 0xeffffffc // PROC_PID_INIT_INO
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/pid", &st); err != nil {
		return false, fmt.Errorf("looking for the pid namespace: %w", err)
	}
	return st.Ino == first, nil
}
