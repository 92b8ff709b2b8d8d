// SPDX-License-Identifier: Apache-2.0

// Package cgroup2 finds the cgroup2 hierarchy of the machine.
package cgroup2

import (
	"bufio"
	"errors"
	"os"
	"strings"
)

// ErrNone is returned when no cgroup2 hierarchy is mounted.
var ErrNone = errors.New("no cgroup2 hierarchy")

// Find returns where the cgroup2 hierarchy is mounted, /sys/fs/cgroup on most machines and
// /sys/fs/cgroup/unified on hybrid ones. Returns [ErrNone] if it is mounted nowhere.
func Find() (string, error) {
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
	return "", ErrNone
}
