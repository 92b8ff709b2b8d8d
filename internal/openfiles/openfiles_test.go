// SPDX-License-Identifier: Apache-2.0

package openfiles

import (
	"context"
	"io"
	"iter"
	"os"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a process that does nothing until its standard input ends.
const childEnv = "REVSK_OPENFILES_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

type finder func(context.Context) ([]File, error)

// collect is a finder of a sequence.
func collect(all func(context.Context) iter.Seq2[File, error]) finder {
	return func(ctx context.Context) (files []File, err error) {
		for f, err := range all(ctx) {
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
		return files, nil
	}
}

// ways are those to the same answer.
func ways(t *testing.T, all finder, magic uint32, kind string) map[string]finder {
	t.Helper()
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	ways := map[string]finder{
		"all":  all,
		"proc": collect(func(ctx context.Context) iter.Seq2[File, error] { return fromProc(ctx, kind) }),
	}
	if it := newIterator(magic); it != nil {
		t.Cleanup(func() { it.Close() })
		ways["iterator"] = collect(func(ctx context.Context) iter.Seq2[File, error] { return fromIterator(ctx, it) })
	} else {
		_, err := os.Stat("/sys/kernel/btf/vmlinux")
		require.ErrorIs(t, err, os.ErrNotExist, "the kernel has its types, and no iterator")
	}
	return ways
}

func of(files []File, pid int) []File {
	var own []File
	for _, f := range files {
		if f.PID == pid {
			own = append(own, f)
		}
	}
	return own
}

func TestFindsSocketsOfProcesses(t *testing.T) {
	local, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(local)
	inherited, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	require.NoError(t, err)
	defer unix.Close(inherited)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childEnv+"=1")
	stdin, err := child.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	defer func() {
		stdin.Close()
		assert.NoError(t, child.Wait())
	}()
	for name, find := range ways(t, collect(Sockets), unix.SOCKFS_MAGIC, "socket") {
		t.Run(name, func(t *testing.T) {
			files, err := find(t.Context())
			require.NoError(t, err)
			assert.Subset(t, files, []File{
				{os.Getpid(), local, inode(t, local)},
				{os.Getpid(), inherited, inode(t, inherited)},
				{child.Process.Pid, inherited, inode(t, inherited)},
			})
			for _, f := range of(files, os.Getpid()) {
				assert.Equal(t, inode(t, f.FD), f.Inode, "descriptor %d", f.FD)
			}
		})
	}
}

func TestFindsNamespacesOfProcesses(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	require.NoError(t, err)
	defer ns.Close()
	fd := int(ns.Fd())
	for name, find := range ways(t, collect(NetworkNamespaces), unix.NSFS_MAGIC, "net") {
		files, err := find(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []File{{os.Getpid(), fd, inode(t, fd)}}, of(files, os.Getpid()), name)
	}
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	return st.Ino
}

func TestEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, find := range ways(t, collect(Sockets), unix.SOCKFS_MAGIC, "socket") {
		_, err := find(ctx)
		assert.ErrorIs(t, err, context.Canceled, name)
	}
}

func TestStopsWhenNobodyWantsMore(t *testing.T) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for f, err := range Sockets(t.Context()) {
		require.NoError(t, err)
		require.NotZero(t, f.PID)
		break
	}
}
