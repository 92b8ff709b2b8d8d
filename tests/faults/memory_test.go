// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sockaddr"
)

// limited is the role of an application whose memory is limited.
const limited = "limited"

// limitedSockets is how many sockets of each kind it has before it meets its limit.
const limitedSockets = 100

// limitedState is what the application and the test tell each other, in memory that both have: at its limit the application can
// get none for anything else.
type limitedState struct {
	ready    atomic.Bool  // it has the sockets that it is to have before
	goOn     atomic.Bool  // it has a limit now
	opened   atomic.Int64 // sockets after that
	refusal  atomic.Int64 // errno with which the first was refused
	done     atomic.Bool  // it has tried everything at its limit
	allowed  atomic.Int64 // calls on its sockets there that went on
	denied   atomic.Int64 // and those that failed with ENOMEM
	attempts atomic.Int64 // looks at all sockets since
	wrong    atomic.Int64 // answers that were not right, and calls that failed with another error
	end      atomic.Bool  // it may end
}

func mapLimitedState(file *os.File) (*limitedState, error) {
	memory, err := unix.Mmap(int(file.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	return (*limitedState)(unsafe.Pointer(&memory[0])), nil
}

func runLimited() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	s, err := mapLimitedState(os.NewFile(3, "state"))
	if err != nil {
		return err
	}
	to := sockaddr.Of(unix.AF_INET, service4)
	toPort := binary.NativeEndian.Uint16([]byte{byte(service4.Port() >> 8), byte(service4.Port())})
	var connected, later []int
	for range limitedSockets {
		for _, fds := range []*[]int{&connected, &later} {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			*fds = append(*fds, fd)
		}
	}
	var peer unix.RawSockaddrInet4
	length := uint32(unix.SizeofSockaddrInet4)
	right := func(fd int) { // unix.Getpeername takes memory
		_, _, e := unix.Syscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&length)))
		if e != 0 || netip.AddrFrom4(peer.Addr) != service4.Addr() || peer.Port != toPort {
			s.wrong.Add(1)
		}
	}
	for _, fd := range connected {
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		right(fd)
	}
	// What is to be used at the limit is there before.
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return err
	}
	s.ready.Store(true)
	await := func(b *atomic.Bool) {
		for !b.Load() {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
		}
	}
	await(&s.goOn)
	for s.refusal.Load() == 0 {
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if e, ok := err.(unix.Errno); ok {
			s.refusal.Store(int64(e))
		} else {
			s.opened.Add(1)
		}
	}
	for _, fd := range later {
		switch err := unix.Connect(fd, to); err {
		case nil:
			s.allowed.Add(1)
			right(fd)
		case unix.ENOMEM:
			s.denied.Add(1)
		default:
			s.wrong.Add(1)
		}
	}
	s.done.Store(true)
	for !s.end.Load() {
		for _, fd := range connected {
			right(fd)
		}
		if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			_ = unix.Close(fd)
		}
		s.attempts.Add(1)
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	return nil
}

// An application whose cgroup has no more memory gets no more sockets. Those that it has work, since what they remember is
// charged to who has loaded. Nobody else notices, and a rollback and a migration move its sockets with all others.
func TestMemoryOfApplications(t *testing.T) {
	n := newNode(t)
	loaded(n)
	dir, limit, usage := limitedCgroup(t)
	// Refuse, rather than kill: with the second version of cgroups the kernel kills.
	refuses := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("1"), 0) == nil
	memory, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	file := os.NewFile(uintptr(memory), "state")
	defer file.Close()
	require.NoError(t, file.Truncate(int64(os.Getpagesize())))
	s, err := mapLimitedState(file)
	require.NoError(t, err)

	executable, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$1"`, dir, executable)
	cmd.Env = append(os.Environ(), workerEnv+"="+limited)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() {
		setLimit(t, limit, math.MaxInt32)
		_ = cmd.Process.Kill()
		<-ended
	}()
	alive := func() bool {
		select {
		case <-ended:
			return false
		default:
			return true
		}
	}
	await := func(what string, b func() bool) {
		t.Helper()
		require.Eventually(t, func() bool { return b() || !alive() }, time.Minute, time.Millisecond, what)
		require.True(t, alive() || !refuses, "%s: the application has ended: %v", what, cmd.ProcessState)
	}
	await("its sockets", s.ready.Load)
	require.True(t, alive())
	before := n.answers()
	b, err := os.ReadFile(usage)
	require.NoError(t, err)
	used, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	setLimit(t, limit, used+256<<10)
	s.goOn.Store(true)
	await("its limit", s.done.Load)

	neighbours := func(what string) {
		t.Helper()
		require.Equal(t, before, n.answers(), what)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err, what)
		defer unix.Close(fd)
		x := &socket{domain: unix.AF_INET, connect: true, fd: fd}
		require.NoError(t, unix.Connect(fd, sockaddr.Of(x.domain, service4)), what)
		require.Equal(t, service4.String(), x.shows(), what)
	}
	neighbours("at the limit")
	for _, line := range []string{"rollback", "mode dual", "migrate"} {
		n.must(words(line)...)
		neighbours(line)
		seen := s.attempts.Load()
		await("that it looks at its sockets again", func() bool { return s.attempts.Load() > seen+1 })
	}
	require.Zero(t, s.wrong.Load())
	end := "was killed"
	if alive() {
		end = fmt.Sprintf("got %v for the next socket; at its limit %d of its sockets were connected, and %d got ENOMEM",
			unix.Errno(s.refusal.Load()), s.allowed.Load(), s.denied.Load())
		s.end.Store(true)
		setLimit(t, limit, math.MaxInt32)
		<-ended
		require.True(t, cmd.ProcessState.Success(), cmd.ProcessState)
	}
	figure(t, "memory of applications", "An application with %d sockets, which 256 KB more were allowed, opened %s more, and %s. Nobody else noticed, and its sockets were rolled back and migrated.",
		2*limitedSockets, thousands(int(s.opened.Load())), end)
}
