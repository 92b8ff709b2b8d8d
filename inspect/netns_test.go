// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The process's first thread, which never ends, is for the main goroutine only: any other may leave its thread in a network
// namespace, which then keeps that.
func init() { runtime.LockOSThread() }

// inNetNS calls f on a thread in a new network namespace, whose loopback device is up. The thread
// ends with the call, the namespace with what f leaves in it.
func inNetNS(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		var err error
		// Not unlocked: so the thread ends with the goroutine.
		runtime.LockOSThread()
		// Deferred, for f may end the goroutine.
		defer func() { done <- err }()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = loopbackUp(); err == nil {
			f()
		}
	}()
	require.NoError(t, <-done, "making a network namespace")
	if t.Failed() {
		t.FailNow()
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// ownNetNS returns the namespace of the thread.
func ownNetNS(t testing.TB) NetNS {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat("/proc/thread-self/ns/net", &st))
	return NetNS{Inode: st.Ino}
}

func TestNamesAreThoseOfMountedNamespaces(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "left-over"), nil, 0o444))
	var ns NetNS
	inNetNS(t, func() {
		ns = ownNetNS(t)
		nameNetNS(t, dir, "blue")
		nameNetNS(t, dir, "the-same")
	})
	names, err := netnsNames(dir)
	require.NoError(t, err)
	assert.Equal(t, map[uint64]string{ns.Inode: "blue"}, names)
}

func TestNoDirectoryOfNamesIsNoError(t *testing.T) {
	names, err := netnsNames(filepath.Join(t.TempDir(), "none"))
	assert.NoError(t, err)
	assert.Empty(t, names)
}

// nameNetNS gives the namespace of the thread a name in dir.
func nameNetNS(t testing.TB, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, nil, 0o444))
	require.NoError(t, unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) })
}
