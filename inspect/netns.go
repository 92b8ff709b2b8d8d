// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const defaultNetNSDir = "/run/netns"

// netnsNames returns the names of the namespaces that are mounted in dir, by their inode.
func netnsNames(dir string) (map[uint64]string, error) {
	if dir == "" {
		dir = defaultNetNSDir
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading names of network namespaces: %w", err)
	}
	names := make(map[uint64]string)
	for _, e := range entries {
		var file unix.Statfs_t
		var ino unix.Stat_t
		path := filepath.Join(dir, e.Name())
		// A file that is left over from a namespace has an inode of another file system.
		if unix.Statfs(path, &file) != nil || file.Type != unix.NSFS_MAGIC || unix.Stat(path, &ino) != nil {
			continue
		}
		if _, ok := names[ino.Ino]; !ok {
			names[ino.Ino] = e.Name()
		}
	}
	return names, nil
}
