// SPDX-License-Identifier: Apache-2.0

// Package cgroup2 finds the cgroup2 hierarchy of the machine.
package cgroup2

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// ErrNone is returned when no cgroup2 hierarchy is mounted.
var ErrNone = errors.New("no cgroup2 hierarchy")

// Find returns where the cgroup2 hierarchy is mounted, /sys/fs/cgroup on most machines and
// /sys/fs/cgroup/unified on hybrid ones. In a cgroup namespace it returns the host's mount if there is
// one, else the namespace's. Returns [ErrNone] if there is no mount.
func Find() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return find(f)
}

func find(mountinfo io.Reader) (string, error) {
	found, above := "", -1
	// proc(5): ID parent major:minor root mountpoint options [optional]... - type source options
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		mount, fs, _ := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(mount)
		if !strings.HasPrefix(fs, "cgroup2 ") || len(fields) <= 4 {
			continue
		}
		// The root is relative to that of the cgroup namespace: /../.. is two levels above it.
		up := strings.Count(fields[3], "/..")
		if strings.ReplaceAll(fields[3], "/..", "") != "" && fields[3] != "/" || up <= above {
			continue
		}
		found, above = unescape(fields[4]), up
	}
	if err := sc.Err(); err != nil {
		return "", err
	}
	if above < 0 {
		return "", ErrNone
	}
	return found, nil
}

// unescape decodes the escapes of blanks, tabs, newlines and backslashes in paths.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// IsRoot tells whether a cgroup is the root of the hierarchy, and not that of a namespace.
func IsRoot(cgroup string) bool {
	_, err := os.Lstat(filepath.Join(cgroup, "cgroup.type"))
	return errors.Is(err, os.ErrNotExist)
}
