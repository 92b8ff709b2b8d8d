// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
	"golang.org/x/sys/unix"
)

// mountBase mounts what nothing works without, whatever the plan.
func mountBase() error {
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
	} {
		if err := mount(m.fs, m.dir, ""); err != nil {
			return err
		}
	}
	return nil
}

func setUp(p plan.Plan) error {
	for _, m := range []struct{ fs, dir string }{
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"tracefs", "/sys/kernel/tracing"},
		{"debugfs", "/sys/kernel/debug"},
	} {
		if err := mount(m.fs, m.dir, ""); err != nil {
			return err
		}
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	if !p.NoBPFFS {
		if err := mount("bpf", "/sys/fs/bpf", "mode=0700"); err != nil {
			return err
		}
	}
	if p.HideBTF {
		if err := mount("tmpfs", "/sys/kernel/btf", ""); err != nil {
			return err
		}
	}
	if err := mountCgroups(p.HybridCgroups); err != nil {
		return err
	}
	// As much as machines with services have; the kernel gives its first process 4096.
	files := unix.Rlimit{Cur: 65536, Max: 65536}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	if err := unix.Sethostname([]byte("revsk-vm")); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	for _, path := range p.Modules {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	return nil
}

func mount(fs, dir, options string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("mounting %s: %w", fs, err)
	}
	if err := unix.Mount(fs, dir, fs, 0, options); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", fs, dir, err)
	}
	return nil
}

// mountCgroups mounts cgroup2 alone, or as systemd does in its hybrid layout: the version 1
// controllers in directories of their own, and cgroup2, without controllers, beside them.
func mountCgroups(hybrid bool) error {
	const root = "/sys/fs/cgroup"
	if !hybrid {
		return mount("cgroup2", root, "")
	}
	if err := mount("tmpfs", root, "mode=0755"); err != nil {
		return err
	}
	if err := mount("cgroup2", filepath.Join(root, "unified"), ""); err != nil {
		return err
	}
	if err := mount("cgroup", filepath.Join(root, "systemd"), "none,name=systemd"); err != nil {
		return err
	}
	controllers, err := os.Open("/proc/cgroups")
	if err != nil {
		return fmt.Errorf("listing controllers: %w", err)
	}
	defer controllers.Close()
	for lines := bufio.NewScanner(controllers); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), "\t")
		if strings.HasPrefix(name, "#") {
			continue
		}
		// Newer kernels have some controllers for version 2 only.
		if err := mount("cgroup", filepath.Join(root, name), name); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("loading a module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading module %s: %w", path, err)
	}
	return nil
}
