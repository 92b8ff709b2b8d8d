// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memoryCgroup is a sandbox's cgroup in the hierarchy that cgroups of version 1 have for memory, if they have one.
func memoryCgroup(cgroup string) string {
	return filepath.Join(memoryRoot, filepath.Base(cgroup))
}

const memoryRoot = "/sys/fs/cgroup/memory"

// removeMemoryCgroups removes the memory cgroups of sandboxes whose cgroup is gone: the sandbox's own, and those that its tests have
// made beside that, whose names begin with the sandbox's and a hyphen.
func removeMemoryCgroups(memory, root string) {
	all, _ := filepath.Glob(filepath.Join(memory, cgroupPrefix+"*"))
	for _, dir := range all {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), "-")
		if _, err := os.Stat(filepath.Join(root, cgroupPrefix+number)); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(dir)
		}
	}
}

const memoryUsage = "memory.kmem.usage_in_bytes"

// enterMemoryCgroup makes what the process and its maps take of the kernel's memory be counted by itself.
func enterMemoryCgroup() error {
	dir := memoryCgroup(Cgroup())
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), memoryUsage)); err != nil {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making a memory cgroup: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// KernelMemory returns how many bytes the kernel has taken for the processes of the sandbox, and the maps and programs that
// they have made; 0 where it does not count that. For tests.
//
// The kernel keeps pages in which objects were, some of them for long: up to 10 MB after 300,000 sockets. It is asked to
// give those back first, so that what is left is in use.
func KernelMemory() (int, error) {
	caches, err := filepath.Glob("/sys/kernel/slab/*/shrink")
	if err != nil {
		return 0, err
	}
	for _, cache := range caches {
		if err := os.WriteFile(cache, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) { // it may just have gone
			return 0, fmt.Errorf("shrinking a slab cache: %w", err)
		}
	}
	v1, err := os.ReadFile(filepath.Join(memoryCgroup(Cgroup()), memoryUsage))
	if err == nil {
		return strconv.Atoi(strings.TrimSpace(string(v1)))
	}
	v2, err := os.ReadFile(filepath.Join(Cgroup(), "memory.stat"))
	if err != nil {
		return 0, nil
	}
	for line := range strings.Lines(string(v2)) {
		if text, ok := strings.CutPrefix(line, "kernel "); ok {
			return strconv.Atoi(strings.TrimSpace(text))
		}
	}
	return 0, nil
}

// AtRest reads how much memory is in use until that has not fallen for a second. The kernel frees much of it later: what sockets
// had, when no program can still look at it. For tests, before they compare.
func AtRest(read func() (int, error)) (int, error) {
	least, err := read()
	for since := time.Now(); err == nil && time.Since(since) < time.Second; {
		time.Sleep(50 * time.Millisecond)
		var now int
		if now, err = read(); now < least {
			least, since = now, time.Now()
		}
	}
	return least, err
}
