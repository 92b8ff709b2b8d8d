// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryCgroup is a sandbox's cgroup in the hierarchy that cgroups of version 1 have for memory, if they have one.
func memoryCgroup(cgroup string) string {
	return filepath.Join("/sys/fs/cgroup/memory", filepath.Base(cgroup))
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
func KernelMemory() (int, error) {
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
