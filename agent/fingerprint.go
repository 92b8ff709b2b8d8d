// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/attached"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// fingerprinter tells cheaply whether something has changed: by the ids of the programs on the hooks of the cgroup, and by
// the inodes of the pins. A pin that is replaced has another inode.
type fingerprinter struct {
	hooks []ebpf.AttachType
}

func newFingerprinter() (*fingerprinter, error) {
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	f := new(fingerprinter)
	for _, p := range spec.Programs {
		f.hooks = append(f.hooks, p.AttachType)
	}
	slices.Sort(f.hooks)
	return f, nil
}

func (f *fingerprinter) take(opts loader.Options) (uint64, error) {
	h := fnv.New64a()
	var st unix.Stat_t
	if err := unix.Stat(opts.Cgroup, &st); err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("cgroup %s: %w", opts.Cgroup, err)
	}
	fmt.Fprint(h, st.Ino)
	for _, hook := range f.hooks {
		found, err := attached.To(opts.Cgroup, hook)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		fmt.Fprint(h, hook, found.IDs)
	}
	for _, dir := range []string{opts.PinsDir, filepath.Join(opts.PinsDir, "links"), opts.TakeoverLinks} {
		if err := pins(h, dir, func(string) bool { return true }); err != nil {
			return 0, err
		}
	}
	// Other maps come and go with every pod.
	err := pins(h, opts.MapsDir, func(name string) bool { return lbmap.MapSpec(name) != nil })
	return h.Sum64(), err
}

// pins writes which pins there are in a directory.
func pins(w interface{ Write([]byte) (int, error) }, dir string, wanted func(name string) bool) error {
	if dir == "" {
		return nil
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, file := range files {
		if !wanted(file.Name()) {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, file.Name()), &st) == nil {
			fmt.Fprint(w, file.Name(), st.Ino)
		}
	}
	return nil
}
