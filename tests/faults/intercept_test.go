// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A command runs under a seccomp filter that asks this process about each of the system calls below: it may go on,
// fail with an error that it then never tried, or the command is killed before it.

// notification is struct seccomp_notif of linux/seccomp.h.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// intercepted are the system calls that a command asks about.
var intercepted = map[int32]string{
	unix.SYS_BPF:        "bpf",
	unix.SYS_OPENAT:     "openat",
	unix.SYS_NEWFSTATAT: "fstatat",
	unix.SYS_READLINKAT: "readlinkat",
	unix.SYS_GETDENTS64: "getdents",
	unix.SYS_READ:       "read",
	unix.SYS_FCNTL:      "fcntl",
	unix.SYS_STATFS:     "statfs",
	unix.SYS_FSTATFS:    "fstatfs",
	unix.SYS_MKDIRAT:    "mkdirat",
	unix.SYS_RENAMEAT:   "renameat",
	unix.SYS_UNLINKAT:   "unlinkat",
	unix.SYS_FLOCK:      "flock",
	unix.SYS_SOCKET:     "socket",
	unix.SYS_SENDTO:     "sendto",
	unix.SYS_RECVFROM:   "recvfrom",
	unix.SYS_SETSOCKOPT: "setsockopt",
	unix.SYS_SETNS:      "setns",
	unix.SYS_PIDFD_OPEN: "pidfd_open",
	sysPidfdGetfd:       "pidfd_getfd",
}

const sysPidfdGetfd = unix.SYS_PIDFD_GETFD

var bpfCommands = []string{
	"MAP_CREATE", "MAP_LOOKUP_ELEM", "MAP_UPDATE_ELEM", "MAP_DELETE_ELEM", "MAP_GET_NEXT_KEY", "PROG_LOAD", "OBJ_PIN",
	"OBJ_GET", "PROG_ATTACH", "PROG_DETACH", "PROG_TEST_RUN", "PROG_GET_NEXT_ID", "MAP_GET_NEXT_ID", "PROG_GET_FD_BY_ID",
	"MAP_GET_FD_BY_ID", "OBJ_GET_INFO_BY_FD", "PROG_QUERY", "RAW_TRACEPOINT_OPEN", "BTF_LOAD", "BTF_GET_FD_BY_ID",
	"TASK_FD_QUERY", "MAP_LOOKUP_AND_DELETE_ELEM", "MAP_FREEZE", "BTF_GET_NEXT_ID", "MAP_LOOKUP_BATCH",
	"MAP_LOOKUP_AND_DELETE_BATCH", "MAP_UPDATE_BATCH", "MAP_DELETE_BATCH", "LINK_CREATE", "LINK_UPDATE",
	"LINK_GET_FD_BY_ID", "LINK_GET_NEXT_ID", "ENABLE_STATS", "ITER_CREATE", "LINK_DETACH", "PROG_BIND_MAP",
}

// call is a system call that a command is about to do.
type call struct {
	kind string // its name; with what the kernel does for it, where that decides how it can fail
	path string // that it names, if it does
}

func (c call) String() string { return strings.TrimSpace(c.kind + " " + c.path) }

// describe reads what a call is about from the memory of who does it.
func describe(n *notification) call {
	c := call{kind: intercepted[n.nr]}
	switch n.nr {
	case unix.SYS_BPF:
		if cmd := n.args[0]; cmd < uint64(len(bpfCommands)) {
			c.kind += " " + bpfCommands[cmd]
		}
	case unix.SYS_OPENAT, unix.SYS_NEWFSTATAT, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_READLINKAT, unix.SYS_RENAMEAT:
		c.path = stringAt(n.pid, n.args[1])
	case unix.SYS_STATFS:
		c.path = stringAt(n.pid, n.args[0])
	case unix.SYS_READ, unix.SYS_GETDENTS64, unix.SYS_FLOCK:
		c.path, _ = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, n.args[0]))
	case unix.SYS_FCNTL:
		if n.args[1] == unix.F_DUPFD_CLOEXEC {
			c.kind = "dup"
		}
	case unix.SYS_SOCKET:
		if n.args[0] == unix.AF_NETLINK {
			c.kind += " netlink"
		}
	}
	return c
}

func stringAt(pid uint32, addr uint64) string {
	var b [256]byte
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	// Up to the end of a page, which may be the last.
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: min(len(b), 4096-int(addr%4096))}}
	n, err := unix.ProcessVMReadv(int(pid), local, remote, 0)
	if err != nil {
		return ""
	}
	s, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(s)
}

// verdict says what is to become of a call: 0 lets it go on.
type verdict struct {
	errno unix.Errno
	kill  bool
	stop  bool // SIGSTOP before it, SIGCONT a little later
}

// outcome is what a command did.
type outcome struct {
	code           int // -1: killed
	stdout, stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d, stderr %q", o.code, strings.TrimSpace(o.stderr))
}

const launcherEnv = "REVSK_FAULTS_LAUNCHER"

// launch becomes the command in the arguments, under the filter, whose descriptor it sends to the socket 3 first.
func launch() error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	for nr := range intercepted {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	path, args, env := os.Args[1], os.Args[1:], os.Environ()
	listener, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("sending the listener: %w", err)
	}
	unix.CloseOnExec(3)
	return unix.Exec(path, args, env)
}

// intercept runs a command and asks decide about each of its calls, one at a time.
func intercept(ctx context.Context, decide func(call) verdict, name string, args ...string) (outcome, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return outcome{}, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "launcher")
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), launcherEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	// The thread that starts it must live as long as it does, because of Pdeathsig.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return outcome{}, err
	}
	listener, err := receiveListener(pair[0])
	if err != nil {
		cancel()
		return outcome{}, fmt.Errorf("%w: %v: %s", err, cmd.Wait(), &stderr)
	}
	done := make(chan error, 1)
	go func() { done <- serve(listener, cmd.Process, decide) }()
	waited := cmd.Wait()
	served := <-done
	unix.Close(listener)
	if ctx.Err() != nil {
		return outcome{}, fmt.Errorf("%v: does not end: %s", args, &stderr)
	}
	if served != nil {
		return outcome{}, served
	}
	var exit *exec.ExitError
	if waited != nil && !errors.As(waited, &exit) {
		return outcome{}, waited
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, nil
}

func receiveListener(fd int) (int, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, b[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.New("no listener came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// serve answers until nobody is left to ask.
func serve(listener int, process *os.Process, decide func(call) verdict) error {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
				return nil
			}
			continue
		}
		var n notification
		if errno := notify(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno != 0 {
			if errno == unix.ENOENT || errno == unix.EINTR {
				continue // it was killed, or interrupted, meanwhile
			}
			return fmt.Errorf("SECCOMP_IOCTL_NOTIF_RECV: %w", errno)
		}
		a := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		v := decide(describe(&n))
		switch {
		case v.kill:
			_ = process.Kill()
			continue
		case v.stop:
			if err := process.Signal(unix.SIGSTOP); err == nil {
				time.Sleep(20 * time.Millisecond)
				_ = process.Signal(unix.SIGCONT)
			}
		case v.errno != 0:
			a.flags, a.errno = 0, -int32(v.errno)
		}
		if errno := notify(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("SECCOMP_IOCTL_NOTIF_SEND: %w", errno)
		}
	}
}

func notify(listener int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), request, uintptr(arg))
	return errno
}

// position is a call of a command: the n-th of its kind, from 0. Other calls come in an order that depends on
// threads.
type position struct {
	kind string
	n    int
}

func (p position) String() string { return p.kind + " " + strconv.Itoa(p.n+1) }

// counter tells each call its position.
type counter map[string]int

func (c counter) next(k call) position {
	p := position{k.kind, c[k.kind]}
	c[k.kind]++
	return p
}
