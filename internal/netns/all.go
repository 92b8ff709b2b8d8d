// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/openfiles"
	"github.com/revsk/revsk/internal/proc"
)

// All returns the network namespaces of all threads, open files and mounts, in any mount namespace, sorted by
// inode. The caller closes the list.
//
// It does not find a namespace that only sockets keep: see [OfSocket]. Namespaces of processes that the caller
// may not look at, or that come and go meanwhile, may be missing.
func All(ctx context.Context) (List, error) {
	f := newFinder()
	for range f.each(ctx) {
	}
	if f.err != nil {
		return nil, errors.Join(f.err, f.found.Close())
	}
	slices.SortFunc(f.found, func(a, b *Namespace) int { return cmp.Compare(a.Inode, b.Inode) })
	return f.found, nil
}

// Each returns the namespaces of [All] one after the other, those that only open files keep last: the search for these takes
// long, and is not made if the caller wants no more. They are closed at the end of the sequence, which ends after an error.
func Each(ctx context.Context) iter.Seq2[*Namespace, error] {
	return func(yield func(*Namespace, error) bool) {
		f := newFinder()
		defer func() { _ = f.found.Close() }()
		for n := range f.each(ctx) {
			if !yield(n, nil) {
				return
			}
		}
		if f.err != nil {
			yield(nil, f.err)
		}
	}
}

// finder collects namespaces, and remembers where it has looked.
type finder struct {
	found   List
	byInode map[uint64]*Namespace
	mounts  map[string]bool // tables of mounts that have been read
	left    time.Duration   // for other tables
	err     error
}

func newFinder() *finder {
	return &finder{byInode: make(map[uint64]*Namespace), mounts: make(map[string]bool), left: mostOfTables}
}

// A table of mounts is read for so long, and all of them together, those of the oldest processes first. In namespaces of its own any
// process can mount what it likes, and to write the table takes the kernel the square of their number: 0.4 s for 10,000 mounts that
// are one upon the other, of up to 100,000.
const (
	mostOfTable  = 500 * time.Millisecond
	mostOfTables = 3 * time.Second
)

// each finds namespaces. An error that ends the search is in err.
func (f *finder) each(ctx context.Context) iter.Seq[*Namespace] {
	return func(yield func(*Namespace) bool) {
		for _, search := range []func(context.Context) error{f.ofProcesses, f.ofFiles} {
			known := len(f.found)
			if err := search(ctx); err != nil {
				f.err = fmt.Errorf("looking for network namespaces: %w", err)
				return
			}
			for _, n := range f.found[known:] {
				if !yield(n) {
					return
				}
			}
		}
	}
}

// ofProcesses looks at threads and mounts.
func (f *finder) ofProcesses(ctx context.Context) error {
	pids, err := proc.Processes()
	if err != nil {
		return err
	}
	f.add("/proc/thread-self/ns/net")
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, tid := range proc.Threads(pid) {
			f.add(proc.Path(pid, "task", strconv.Itoa(tid), "ns", "net"))
		}
		f.addMounts(pid)
	}
	return nil
}

func (f *finder) ofFiles(ctx context.Context) error {
	for file, err := range openfiles.NetworkNamespaces(ctx) {
		if err != nil {
			return err
		}
		if f.byInode[file.Inode] == nil {
			f.add(proc.Path(file.PID, "fd", strconv.Itoa(file.FD)))
		}
	}
	return nil
}

// add opens the namespace of a link in /proc, unless it is known. It ignores links that are gone.
func (f *finder) add(link string) {
	target, err := os.Readlink(link)
	if err != nil {
		return
	}
	if inode, ok := proc.Inode(target, "net"); !ok || f.byInode[inode] != nil {
		return
	}
	file, err := os.Open(link)
	if err != nil {
		return
	}
	f.addFile(file)
}

func (f *finder) addFile(file *os.File) {
	n, err := fromFile(file)
	if err != nil {
		return
	}
	// The link may have changed.
	if f.byInode[n.Inode] != nil {
		_ = n.Close()
		return
	}
	f.byInode[n.Inode] = n
	f.found = append(f.found, n)
}

// addMounts looks through the mounts of a process, once for each mount namespace.
func (f *finder) addMounts(pid int) {
	ns, err := os.Readlink(proc.Path(pid, "ns", "mnt"))
	if err != nil {
		return
	}
	root, err := os.Readlink(proc.Path(pid, "root"))
	if err != nil || f.mounts[ns+root] {
		return
	}
	f.mounts[ns+root] = true
	begin, limit := time.Now(), min(f.left, mostOfTable)
	defer func() { f.left -= time.Since(begin) }()
	if limit <= 0 {
		return
	}
	table, err := os.Open(proc.Path(pid, "mountinfo"))
	if err != nil {
		return
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, longestMount)
	for time.Since(begin) < limit && lines.Scan() {
		inode, path, ok := mountedNamespace(lines.Text())
		if !ok || f.byInode[inode] != nil {
			continue
		}
		if file := openIn(pid, path); file != nil {
			f.addFile(file)
		}
	}
}

// longestMount is more than a line of a table of mounts can have.
const longestMount = 1 << 20

// mountedNamespace reads a line of /proc/PID/mountinfo. The fourth field is the mounted object, the
// fifth the mount point.
func mountedNamespace(line string) (inode uint64, path string, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return 0, "", false
	}
	inode, ok = proc.Inode(fields[3], "net")
	return inode, unescape(fields[4]), ok
}

// unescape decodes the escapes of blanks, line ends and backslashes in a path.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

const (
	resolveCached = 0x20 // RESOLVE_CACHED, which package unix has not got
	lookUps       = 5    // how often a path is looked up, if mounts and names change meanwhile
)

// lookUp asks no file system, which may belong to a process and never answer: what leads to a mount is in the kernel's cache. Before
// Linux 5.12 there is no way not to ask.
func lookUp(root int, path string) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | resolveCached,
	}
	for range lookUps {
		if fd, err = unix.Openat2(root, path, &how); !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	if errors.Is(err, unix.EINVAL) {
		how.Resolve &^= resolveCached
		return unix.Openat2(root, path, &how)
	}
	return fd, err
}

// openIn opens a namespace's file as a process sees it. That process controls the path, so openIn checks
// the file before it opens it for use, and follows no link.
func openIn(pid int, path string) *os.File {
	root, err := os.OpenFile(proc.Path(pid, "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer root.Close()
	fd, err := lookUp(int(root.Fd()), path)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return nil
	}
	file, err := os.Open("/proc/thread-self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil
	}
	return file
}
