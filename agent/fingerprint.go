// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	dirs  map[string]directory
}

// directory is what was last seen in a directory of pins.
type directory struct {
	inode    uint64
	modified unix.Timespec
	pins     uint64 // the hash of their names and inodes
	final    bool   // a later change would have given the directory another time
}

// timeMoves is after how long a file that changes surely gets another time.
const timeMoves = 100 * time.Millisecond

func newFingerprinter() (*fingerprinter, error) {
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	f := &fingerprinter{dirs: make(map[string]directory)}
	for _, p := range spec.Programs {
		f.hooks = append(f.hooks, p.AttachType)
	}
	slices.Sort(f.hooks)
	return f, nil
}

func (f *fingerprinter) take(opts loader.Options) (uint64, error) {
	h := fnv.New64a()
	if err := f.programs(h, opts.Cgroup); err != nil {
		return 0, err
	}
	all := func(string) bool { return true }
	// Other maps come and go with every pod.
	services := func(name string) bool { return lbmap.MapSpec(name) != nil }
	err := errors.Join(
		f.pins(h, opts.PinsDir, all), f.pins(h, filepath.Join(opts.PinsDir, "links"), all), f.pins(h, opts.TakeoverLinks, all),
		f.pins(h, opts.MapsDir, services))
	return h.Sum64(), err
}

// programs writes which programs are on the hooks.
func (f *fingerprinter) programs(w io.Writer, cgroup string) error {
	dir, err := os.Open(cgroup)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	fmt.Fprint(w, st.Ino)
	for _, hook := range f.hooks {
		found, err := attached.On(dir, hook)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		fmt.Fprint(w, hook, found.IDs)
	}
	return nil
}

// pins writes which pins there are in a directory. It reads the directory if that has changed.
func (f *fingerprinter) pins(w io.Writer, dir string, wanted func(name string) bool) error {
	if dir == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	known := f.dirs[dir]
	if !known.final || known.inode != st.Ino || known.modified != st.Mtim {
		known = directory{inode: st.Ino, modified: st.Mtim, final: time.Since(time.Unix(st.Mtim.Unix())) > timeMoves}
		var err error
		if known.pins, err = readPins(dir, wanted); err != nil {
			return err
		}
		f.dirs[dir] = known
	}
	fmt.Fprint(w, known.pins)
	return nil
}

func readPins(dir string, wanted func(name string) bool) (uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	h := fnv.New64a()
	for _, file := range files {
		if !wanted(file.Name()) {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, file.Name()), &st) == nil {
			fmt.Fprint(h, file.Name(), st.Ino)
		}
	}
	return h.Sum64(), nil
}
