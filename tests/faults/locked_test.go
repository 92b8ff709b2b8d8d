// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Of linux/userfaultfd.h.
const (
	uffdAPI        = 0xaa
	uffdMissing    = 1
	uffdioAPI      = 0xc018aa3f
	uffdioRegister = 0xc020aa00
	uffdPatience   = 10 * time.Second
	lockedFor      = 2 * time.Second
)

// lockSocket has a thread send on a connected TCP socket from memory that is not there, as where that is a file of a server that
// does not answer. The kernel keeps the socket locked until release is called, or the process ends.
func lockSocket(t *testing.T, fd int) (release func()) {
	t.Helper()
	faults, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	require.Zero(t, errno)
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	api := [3]uint64{uffdAPI}
	_, _, errno = unix.Syscall(unix.SYS_IOCTL, faults, uffdioAPI, uintptr(unsafe.Pointer(&api)))
	require.Zero(t, errno)
	register := [4]uint64{uint64(uintptr(unsafe.Pointer(&memory[0]))), uint64(len(memory)), uffdMissing}
	_, _, errno = unix.Syscall(unix.SYS_IOCTL, faults, uffdioRegister, uintptr(unsafe.Pointer(&register)))
	require.Zero(t, errno)
	sent := make(chan error, 1)
	go func() { // not by unix.Write, which may look at the memory itself
		_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&memory[0])), 64)
		sent <- errno
	}()
	poll := []unix.PollFd{{Fd: int32(faults), Events: unix.POLLIN}}
	require.NoError(t, uninterrupted(func() error { _, err := unix.Poll(poll, int(uffdPatience.Milliseconds())); return err }))
	require.NotZero(t, poll[0].Revents, "nobody asks for the memory")
	return func() {
		t.Helper()
		require.NoError(t, unix.Close(int(faults)))
		require.Equal(t, unix.Errno(0), <-sent)
		require.NoError(t, unix.Munmap(memory))
	}
}

// A process can keep one of its sockets locked. What has to look into that socket waits for it, as the kernel's iterators of TCP
// sockets and SOCK_DESTROY do; everything else does not, and what waits goes on when the lock is given back.
func TestASocketThatStaysLocked(t *testing.T) {
	n := newNode(t)
	inMode("rollback", "mode dual")(n)
	before := n.answers()
	tcp := n.sockets[slices.IndexFunc(n.sockets, func(s *socket) bool { return s.name == "TCP" })]
	other := slices.DeleteFunc(slices.Clone(n.sockets), func(s *socket) bool { return s == tcp })
	everyoneElse := func(what string) {
		t.Helper()
		for _, s := range other {
			require.Equal(t, before["socket "+s.name], s.shows(), "%s: %s", what, s.name)
		}
	}
	locked := func(f func()) {
		t.Helper()
		release := sync.OnceFunc(lockSocket(t, tcp.fd))
		defer release()
		f()
	}
	waits := func(args ...string) {
		t.Helper()
		var out bytes.Buffer
		cmd := exec.Command(os.Getenv(binaryEnv), commandLine(args)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		ended := make(chan error, 1)
		locked(func() {
			require.NoError(t, cmd.Start())
			go func() { ended <- cmd.Wait() }()
			time.Sleep(lockedFor) // before Linux 5.15 the iterator does not take the lock, and it may have ended
			n.inTime("status")
			n.inTime("list")
			everyoneElse(args[0] + " waits")
		})
		require.NoError(t, <-ended, "%v: %s", args, &out)
	}
	locked(func() {
		for _, line := range []string{
			"status", "list", "load", "rollback", "mode dual",
			"service add 10.96.0.9:80/tcp --backend 10.1.0.1:80", "service delete 10.96.0.9:80/tcp", "unload", "load",
		} {
			n.inTime(line)
		}
		everyoneElse("nobody waits")
	})
	waits("migrate")
	require.Equal(t, before, n.answers())
	require.Contains(t, n.run("status", "-o", "json").stdout, `"mode": "storage"`)
	waits("terminate", backend4.String()+"/tcp")
	_, err := unix.Getpeername(tcp.fd)
	require.ErrorIs(t, err, unix.ENOTCONN)
}

// inTime runs a command that is not to wait for anything.
func (n *node) inTime(line string) {
	n.Helper()
	done := make(chan outcome, 1)
	go func() { done <- n.run(words(line)...) }()
	select {
	case o := <-done:
		require.Equal(n, 0, o.code, "%s: %v", line, o)
	case <-time.After(time.Minute):
		n.Fatalf("%s waits for the socket", line)
	}
}
