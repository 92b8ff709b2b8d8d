// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestThisProcessIsFoundWithItsThreadsAndFiles(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))

	pids, err := Processes()
	require.NoError(t, err)
	assert.Contains(t, pids, os.Getpid())
	assert.Contains(t, Threads(os.Getpid()), unix.Gettid())
	found := make(map[int]uint64)
	for fd, target := range Files(os.Getpid()) {
		if inode, ok := Inode(target, "socket"); ok {
			found[fd] = inode
		}
	}
	assert.Equal(t, st.Ino, found[fd])
}

func TestNoProcessHasNoThreadsAndFiles(t *testing.T) {
	assert.Empty(t, Threads(-1))
	for range Files(-1) {
		t.Error("a file of no process")
	}
}

func TestInodeReadsItsKindOnly(t *testing.T) {
	inode, ok := Inode("socket:[4711]", "socket")
	assert.True(t, ok)
	assert.Equal(t, uint64(4711), inode)
	for _, target := range []string{"net:[4711]", "socket:[4711", "socket:4711]", "socket:[x]", "/socket:[4711]", ""} {
		_, ok := Inode(target, "socket")
		assert.False(t, ok, target)
	}
}
