// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
)

// A namespace can be mounted in a file system of a process, to which others have access, and which answers no more.
func TestAFileSystemThatDoesNotAnswer(t *testing.T) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached}
	root, err := unix.Openat2(unix.AT_FDCWD, "/", &how)
	if errors.Is(err, unix.EINVAL) {
		oldkernel.Skip(t, 5, 12, "RESOLVE_CACHED")
	}
	require.NoError(t, err)
	require.NoError(t, unix.Close(root))
	dir, silence := mountFUSE(t)
	file := filepath.Join(dir, "file")
	require.NoError(t, unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, ""))
	silence()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f := newFinder()
		f.addMounts(os.Getpid())
		_ = f.found.Close()
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it is waited for")
	}
}

// mountFUSE mounts a file system in which each name is a file, as fusermount does where user_allow_other is set.
func mountFUSE(t *testing.T) (dir string, silence func()) {
	t.Helper()
	dir = t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		oldkernel.SkipWithout(t, "CONFIG_FUSE_FS", oldkernel.Has(t, "/sys/fs/fuse"))
	}
	require.NoError(t, err)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	require.NoError(t, unix.Mount("fuse", dir, "fuse", 0, options))
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) // who waits goes on
		_ = unix.Close(fd)
	})
	var silent atomic.Bool
	go func() {
		for request := make([]byte, 1<<18); ; {
			n, err := unix.Read(fd, request)
			if err != nil || silent.Load() {
				return
			}
			if answer := fuseAnswer(request[:n]); answer != nil {
				_, _ = unix.Write(fd, answer)
			}
		}
	}()
	return dir, func() { silent.Store(true) }
}

type fuseAttr struct {
	Inode, Size, Blocks, Atime, Mtime, Ctime                     uint64
	AtimeN, MtimeN, CtimeN, Mode, Links, UID, GID, Dev, Size2, _ uint32
}

func fuseAnswer(request []byte) []byte {
	opcode, node := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint64(request[16:])
	dir := fuseAttr{Inode: 1, Mode: unix.S_IFDIR | 0o755, Links: 2}
	file := fuseAttr{Inode: 2, Mode: unix.S_IFREG | 0o644, Links: 1}
	var b bytes.Buffer
	write := func(parts ...any) {
		for _, p := range parts {
			_ = binary.Write(&b, binary.NativeEndian, p)
		}
	}
	errno := int32(0)
	switch opcode {
	case 1: // LOOKUP; names and attributes are good for no time
		write([4]uint64{2, 0, 0, 0}, [2]uint32{}, file)
	case 2, 42: // FORGET
		return nil
	case 3: // GETATTR
		if node == 2 {
			dir = file
		}
		write([2]uint64{}, dir)
	case 26: // INIT
		write([4]uint32{7, 31, 0, 0}, [2]uint16{}, [2]uint32{4096, 1}, [9]uint32{})
	default:
		errno = -int32(unix.ENOSYS)
	}
	header := make([]byte, 16)
	binary.NativeEndian.PutUint32(header, uint32(16+b.Len()))
	binary.NativeEndian.PutUint32(header[4:], uint32(errno))
	copy(header[8:], request[8:16])
	return append(header, b.Bytes()...)
}
