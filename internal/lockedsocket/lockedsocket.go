// SPDX-License-Identifier: Apache-2.0

// Package lockedsocket keeps a socket locked, as a process can do with its own: for tests.
package lockedsocket

import (
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Of linux/userfaultfd.h.
const (
	uffdAPI      = 0xaa
	uffdMissing  = 1
	uffdioAPI    = 0xc018aa3f
	uffdRegister = 0xc020aa00
	patience     = 10 * time.Second
)

// Lock has a thread send on a connected TCP socket from memory that is not there, as where that is a file of a server that does
// not answer. The kernel keeps the socket locked until release is called, or the test or the process ends.
func Lock(t testing.TB, fd int) (release func()) {
	t.Helper()
	faults, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	require.Zero(t, errno)
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	api := [3]uint64{uffdAPI}
	_, _, errno = unix.Syscall(unix.SYS_IOCTL, faults, uffdioAPI, uintptr(unsafe.Pointer(&api)))
	require.Zero(t, errno)
	register := [4]uint64{uint64(uintptr(unsafe.Pointer(&memory[0]))), uint64(len(memory)), uffdMissing}
	_, _, errno = unix.Syscall(unix.SYS_IOCTL, faults, uffdRegister, uintptr(unsafe.Pointer(&register)))
	require.Zero(t, errno)
	sent := make(chan error, 1)
	go func() { // not by unix.Write, which may look at the memory itself
		_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&memory[0])), 64)
		sent <- errno
	}()
	poll := []unix.PollFd{{Fd: int32(faults), Events: unix.POLLIN}}
	for deadline := time.Now().Add(patience); poll[0].Revents == 0 && time.Now().Before(deadline); {
		if _, err := unix.Poll(poll, int(patience.Milliseconds())); err != unix.EINTR {
			require.NoError(t, err)
		}
	}
	require.NotZero(t, poll[0].Revents, "nobody asks for the memory")
	release = sync.OnceFunc(func() {
		_ = unix.Close(int(faults))
		<-sent // it may have failed since, as where the socket was destroyed
		_ = unix.Munmap(memory)
	})
	t.Cleanup(release)
	return release
}
