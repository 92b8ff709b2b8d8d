// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs a program where it cannot harm the machine and leaves nothing behind: in a cgroup, a network
// namespace and a mount namespace of its own, with its own BPF file system at /sys/fs/bpf. Whatever it
// attaches, pins and mounts goes with the process, however that ends. The parent removes the cgroup.
//
// The selftest and the tests use it. Minimum kernel: Linux 5.7 (CLONE_INTO_CGROUP). Needs root.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/cgroup2"
	"github.com/revsk/revsk/internal/childproc"
)

const (
	cgroupEnv    = "REVSK_SANDBOX_CGROUP"
	cgroupPrefix = "revsk-sandbox-"
)

// Inside tells whether this process was started by [Run].
func Inside() bool { return os.Getenv(cgroupEnv) != "" }

// Cgroup is the sandbox's cgroup; for a process inside.
func Cgroup() string { return os.Getenv(cgroupEnv) }

// Run starts this executable again with the arguments in a new sandbox, with this process's standard
// streams, and returns its exit code. When the context ends, it interrupts the process, and kills it
// half a minute later.
func Run(ctx context.Context, args ...string) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("making a sandbox: %w", os.ErrPermission)
	}
	root, err := cgroup2.Find()
	if err != nil {
		return 0, err
	}
	removeStale(root)
	cgroup, err := os.MkdirTemp(root, cgroupPrefix)
	if err != nil {
		return 0, fmt.Errorf("making a cgroup: %w", err)
	}
	defer func() { err = errors.Join(err, removeCgroup(cgroup)) }()
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	// As long as this process lives. See removeStale.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_SH); err != nil {
		return 0, fmt.Errorf("locking the cgroup: %w", err)
	}

	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), cgroupEnv+"="+cgroup)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second // on a machine that is busy, to detach what is attached takes seconds
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNET,
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
		// Unshared rather than cloned: mounts then are made private.
		Unshareflags: unix.CLONE_NEWNS,
	}
	if err = childproc.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("running in a sandbox: %w", err)
	}
	return 0, nil
}

// removeStale removes the cgroups of sandboxes whose parent was killed together with the process inside: those
// that nobody holds locked. A young one is left: its parent may not have locked it yet.
func removeStale(root string) {
	stale, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, cgroup := range stale {
		dir, err := os.Open(cgroup)
		if err != nil {
			continue
		}
		st, err := dir.Stat()
		if err == nil && time.Since(st.ModTime()) > time.Minute && unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.Remove(cgroup)
		}
		dir.Close()
	}
	removeMemoryCgroups(memoryRoot, root)
}

// removeCgroup kills what is left in the cgroup and removes it, with those below it.
func removeCgroup(cgroup string) error {
	var err error
	for range 1500 { // half a minute: on a machine that is busy, to end takes a process with namespaces seconds
		// Since Linux 5.14. Before, only processes that a test has forgotten are left.
		_ = os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0)
		_ = filepath.WalkDir(cgroup, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != cgroup {
				_ = os.Remove(path)
			}
			return nil
		})
		if err = os.Remove(cgroup); err == nil || errors.Is(err, os.ErrNotExist) {
			removeMemoryCgroups(memoryRoot, filepath.Dir(cgroup))
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("removing the cgroup: %w", err)
}

// Enter makes the sandbox usable; a process inside calls it first.
func Enter() error {
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a BPF file system: %w", err)
	}
	return LoopbackUp()
}

// TestMain is for tests: outside it runs the same test binary in a sandbox, inside it runs the
// tests. It returns the exit code.
func TestMain(run func() int) int {
	if !Inside() {
		code, err := Run(context.Background(), os.Args[1:]...)
		if err != nil {
			fmt.Fprintf(os.Stderr, "these tests need root and a kernel with BPF, cgroup2 and network namespaces: %v\n", err)
			return 1
		}
		return code
	}
	if err := errors.Join(enterMemoryCgroup(), Enter()); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need root and a kernel with BPF, cgroup2 and network namespaces: %v\n", err)
		return 1
	}
	return run()
}
