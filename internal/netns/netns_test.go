// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// all returns what All finds, by inode.
func all(t *testing.T) map[uint64]*Namespace {
	t.Helper()
	list, err := All(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, list.Close()) })
	byInode := make(map[uint64]*Namespace)
	for i, n := range list {
		assert.Nil(t, byInode[n.Inode], "found twice")
		assert.True(t, i == 0 || list[i-1].Inode < n.Inode, "sorted by inode")
		byInode[n.Inode] = n
	}
	return byInode
}

// here checks in which namespace the thread is.
func here(t *testing.T, want uint64) error {
	got, err := threadInode()
	assert.Equal(t, want, got)
	return err
}

func TestFindsNamespacesHowverTheyAreHeld(t *testing.T) {
	own, err := threadInode()
	require.NoError(t, err)
	held := map[string]uint64{"own": own}
	for _, how := range []string{"thread", "file", "mount elsewhere"} {
		_, held[how] = startHolder(t, how)
	}
	dir := t.TempDir()
	inNew(t, func() error {
		held["name"], err = threadInode()
		return errors.Join(err, name(dir, "blue"))
	})
	defer func() { require.NoError(t, unix.Unmount(filepath.Join(dir, "blue"), unix.MNT_DETACH)) }()

	found := all(t)
	for how, inode := range held {
		n := found[inode]
		if assert.NotNil(t, n, "a namespace held by %s", how) {
			require.NoError(t, n.Do(func() error { return here(t, inode) }), how)
		}
	}
}

// Who has found what he looks for need not wait for the search of open files.
func TestNamespacesOfFilesComeLast(t *testing.T) {
	held := make(map[string]uint64)
	for _, how := range []string{"file", "thread", "mount elsewhere"} {
		_, held[how] = startHolder(t, how)
	}
	place := make(map[uint64]int)
	var last *Namespace
	for n, err := range Each(t.Context()) {
		require.NoError(t, err)
		require.NotContains(t, place, n.Inode, "found twice")
		place[n.Inode], last = len(place), n
	}
	assert.Error(t, last.Do(func() error { return nil }), "closed")
	for how, inode := range held {
		assert.Contains(t, place, inode, "a namespace held by %s", how)
		assert.LessOrEqual(t, place[inode], place[held["file"]], how)
	}
	for n, err := range Each(t.Context()) {
		require.NoError(t, err)
		last = n
		break
	}
	assert.Error(t, last.Do(func() error { return nil }), "closed")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range Each(ctx) {
		assert.ErrorIs(t, err, context.Canceled)
	}
}

func TestANamespaceThatOnlyASocketHoldsIsThatOfTheSocket(t *testing.T) {
	pid, inode := startHolder(t, "socket")
	assert.NotContains(t, all(t), inode)

	var st unix.Stat_t
	require.NoError(t, unix.Stat(procFile(t, pid, "socket"), &st))
	n, err := OfProcessSocket(pid, st.Ino)
	require.NoError(t, err)
	defer n.Close()
	assert.Equal(t, inode, n.Inode)
	require.NoError(t, n.Do(func() error { return here(t, inode) }))
	assert.Contains(t, all(t), inode, "this process has it open now")

	_, err = OfProcessSocket(pid, st.Ino+1)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = OfProcessSocket(1<<22, st.Ino)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// procFile is the link of the first descriptor of the kind that a process has.
func procFile(t *testing.T, pid int, kind string) string {
	t.Helper()
	links, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
	require.NoError(t, err)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && len(target) > len(kind) && target[:len(kind)] == kind {
			return link
		}
	}
	t.Fatalf("process %d has no %s", pid, kind)
	return ""
}

func TestTheNamespaceOfOwnSockets(t *testing.T) {
	var fd int
	var inode uint64
	inNew(t, func() (err error) {
		inode, err = threadInode()
		fd, _ = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	n, err := OfSocket(fd)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	assert.Equal(t, inode, n.Inode)
	require.NoError(t, n.Do(func() error { return here(t, inode) }), "a namespace that is open stays")
	require.NoError(t, n.Close())
	assert.Error(t, n.Do(func() error { return nil }), "closed")

	_, err = OfSocket(0)
	assert.Error(t, err)
}

func TestNobodyElseRunsInTheNamespace(t *testing.T) {
	own, err := threadInode()
	require.NoError(t, err)
	_, other := startHolder(t, "thread")
	n := all(t)[other]
	require.NotNil(t, n)

	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			assert.NoError(t, n.Do(func() error {
				// Its own goroutines are elsewhere.
				elsewhere := make(chan error)
				go func() { elsewhere <- here(t, own) }()
				return errors.Join(<-elsewhere, here(t, other))
			}))
		})
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			time.Sleep(time.Millisecond)
			assert.NoError(t, here(t, own))
		})
	}
	wg.Wait()
	var st unix.Stat_t
	require.NoError(t, unix.Stat("/proc/self/ns/net", &st))
	assert.Equal(t, own, st.Ino, "the process as a whole")
}

func TestDoReturnsWhatTheFunctionReturns(t *testing.T) {
	own, err := threadInode()
	require.NoError(t, err)
	n := all(t)[own]
	assert.ErrorIs(t, n.Do(func() error { return os.ErrClosed }), os.ErrClosed)
	assert.ErrorIs(t, n.Do(func() error { runtime.Goexit(); return nil }), errExited)
}

func TestNothingStaysOpen(t *testing.T) {
	pid, _ := startHolder(t, "socket")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(procFile(t, pid, "socket"), &st))
	own, err := os.Open("/proc/self/ns/net")
	require.NoError(t, err)
	defer own.Close()
	before := openFiles(t)
	list, err := All(t.Context())
	require.NoError(t, err)
	n, err := OfProcessSocket(pid, st.Ino)
	require.NoError(t, err)
	assert.Equal(t, before+len(list)+1, openFiles(t))
	require.NoError(t, append(list, n).Close())
	assert.Equal(t, before, openFiles(t))
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(fds)
}

func TestLookingForNamespacesEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := All(ctx)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestMountsOfNamespacesAreRead(t *testing.T) {
	inode, path, ok := mountedNamespace(`44 28 0:4 net:[4026532281] /run/netns/a\040b rw shared:5 - nsfs nsfs rw` + "\n")
	assert.True(t, ok)
	assert.Equal(t, uint64(4026532281), inode)
	assert.Equal(t, "/run/netns/a b", path)
	for _, line := range []string{
		"44 28 0:4 mnt:[4026532281] /run/x rw - nsfs nsfs rw\n",
		"28 1 0:4 / / rw - ext4 /dev/vda rw\n",
		"\n",
	} {
		_, _, ok := mountedNamespace(line)
		assert.False(t, ok, line)
	}
}

// A process can have mounted something else by the time that it is opened.
func TestWhatIsNoNamespaceIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	require.NoError(t, os.Symlink("/proc/self/ns/net", filepath.Join(dir, "link")))
	for _, name := range []string{"fifo", "link", "missing"} {
		assert.Nil(t, openIn(os.Getpid(), filepath.Join(dir, name)), name)
	}
	for _, path := range []string{"/proc/self/ns/mnt", "/proc/self/exe"} {
		file, err := os.Open(path)
		require.NoError(t, err)
		_, err = fromFile(file)
		assert.Error(t, err, path)
	}
}

// A process makes its table of mounts as long as it likes, or there are many of them: others are found nevertheless.
func TestTablesOfMountsAreReadForSoLong(t *testing.T) {
	pid, mounted := startHolder(t, "mount elsewhere")
	_, held := startHolder(t, "file")
	for left, want := range map[time.Duration]bool{0: false, time.Nanosecond: false, mostOfTables: true} {
		f := newFinder()
		f.left = left
		f.addMounts(pid)
		require.Equal(t, want, f.byInode[mounted] != nil, left)
		require.Less(t, f.left, max(left, 1))
		for range f.each(t.Context()) {
		}
		require.NoError(t, f.err)
		require.NotNil(t, f.byInode[held], left)
		require.NoError(t, f.found.Close())
	}
}
