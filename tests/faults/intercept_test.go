// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/childproc"
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
	site site   // where in the code it is done
	pid  uint32 // of the thread
	nr   int32
}

func (c call) String() string { return strings.TrimSpace(c.kind + " " + c.path) }

// describe reads what a call is about from the memory of who does it.
func describe(n *notification) call {
	c := call{kind: intercepted[n.nr], pid: n.pid, nr: n.nr}
	if c.kind == "" {
		return c
	}
	switch n.nr {
	case unix.SYS_BPF:
		if cmd := n.args[0]; cmd < uint64(len(bpfCommands)) {
			c.kind += " " + bpfCommands[cmd]
		}
		if n.args[0] == unix.BPF_OBJ_PIN || n.args[0] == unix.BPF_OBJ_GET {
			if b := memoryAt(n.pid, n.args[1], 8); len(b) == 8 { // pathname is the first field
				c.path = stringAt(n.pid, binary.NativeEndian.Uint64(b))
			}
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
	if c.concerns() {
		c.site = siteOf(n.pid)
	}
	return c
}

func stringAt(pid uint32, addr uint64) string {
	s, _, _ := bytes.Cut(memoryAt(pid, addr, 256), []byte{0})
	return string(s)
}

// memoryAt returns the memory of a process at an address, or what can be read of it.
func memoryAt(pid uint32, addr uint64, size int) []byte {
	b := make([]byte, size)
	local := []unix.Iovec{{Base: &b[0], Len: uint64(size)}}
	var remote []unix.RemoteIovec // a page each: the kernel stops at the first that is not there
	for at, end := addr, addr+uint64(size); at < end; {
		next := min(end, at&^4095+4096)
		remote = append(remote, unix.RemoteIovec{Base: uintptr(at), Len: int(next - at)})
		at = next
	}
	n, err := unix.ProcessVMReadv(int(pid), local, remote, 0)
	if err != nil {
		return nil
	}
	return b[:n]
}

// verdict says what is to become of a call: 0 lets it go on.
type verdict struct {
	errno  unix.Errno
	kill   bool
	during func() // called while the command is stopped before it
	last   bool   // all later calls go on, without being asked about
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

// allowedEnv has numbers of calls, by blanks: then all others are asked about.
const allowedEnv = "REVSK_FAULTS_ALLOWED"

// onlyEnv has a kind of calls: then nobody is asked about others, which takes a switch of processes each.
const onlyEnv = "REVSK_FAULTS_ONLY"

// askAbout adds to a filter that it asks about calls of a kind, which may depend on an argument.
func askAbout(filter []unix.SockFilter, kind string) ([]unix.SockFilter, error) {
	name, detail, _ := strings.Cut(kind, " ")
	arg, value := 0, uint32(0)
	switch {
	case name == "bpf":
		value = uint32(slices.Index(bpfCommands, detail))
	case name == "socket":
		value = unix.AF_NETLINK
	case name == "dup":
		name, arg, value = "fcntl", 1, unix.F_DUPFD_CLOEXEC
	default:
		arg = -1
	}
	const allow, args = 1, 16 // where struct seccomp_data has them
	for nr, known := range intercepted {
		if known != name {
			continue
		}
		jump := func(value uint32, otherwise uint8) unix.SockFilter {
			return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: otherwise}
		}
		ask := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF}
		if arg < 0 {
			return append(filter, jump(uint32(nr), allow), ask), nil
		}
		return append(filter, jump(uint32(nr), allow+2),
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(args + 8*arg)}, jump(value, allow), ask), nil
	}
	return nil, fmt.Errorf("no calls %q", kind)
}

// launch becomes the command in the arguments, under the filter, whose descriptor it sends to the socket 3 first.
func launch() error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	add := func(nr int32, action uint32) {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
	}
	var others uint32 = unix.SECCOMP_RET_ALLOW
	if only := os.Getenv(onlyEnv); only != "" {
		var err error
		if filter, err = askAbout(filter, only); err != nil {
			return err
		}
	} else {
		for nr := range intercepted {
			add(nr, unix.SECCOMP_RET_USER_NOTIF)
		}
	}
	if allowed := strings.Fields(os.Getenv(allowedEnv)); len(allowed) > 0 {
		others = unix.SECCOMP_RET_USER_NOTIF
		add(unix.SYS_SENDMSG, unix.SECCOMP_RET_ALLOW) // nobody is asked before the listener has been sent
		for _, text := range allowed {
			nr, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			add(int32(nr), unix.SECCOMP_RET_ALLOW)
		}
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: others})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	path, args := os.Args[1], os.Args[1:]
	env := slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, launcherEnv) || strings.HasPrefix(s, allowedEnv) || strings.HasPrefix(s, onlyEnv)
	})
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
func intercept(ctx context.Context, decide func(call) verdict, environment []string, name string, args ...string) (outcome, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return outcome{}, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "launcher")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{name}, args...)...)
	cmd.Env = append(append(os.Environ(), environment...), launcherEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = childproc.Start(cmd)
	theirs.Close()
	if err != nil {
		return outcome{}, err
	}
	listener, err := receiveListener(pair[0])
	if err != nil {
		cancel()
		return outcome{}, fmt.Errorf("%w: %v: %s", err, cmd.Wait(), &stderr)
	}
	// Since Linux 6.6: both take turns on one processor, and none of them waits for its share of a busy one.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
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
	var v verdict
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
		if v.last {
			v = verdict{last: true}
		} else {
			v = decide(describe(&n))
		}
		switch {
		case v.kill:
			_ = process.Kill()
			continue
		case v.during != nil:
			if err := stopWhile(process, v.during); err != nil {
				return err
			}
		case v.errno != 0:
			a.flags, a.errno = 0, -int32(v.errno)
		}
		if errno := notify(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("SECCOMP_IOCTL_NOTIF_SEND: %w", errno)
		}
	}
}

// stopWhile calls a function while a process is stopped.
func stopWhile(process *os.Process, during func()) error {
	if err := process.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	defer process.Signal(unix.SIGCONT)
	for stopped := false; !stopped; {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Pid))
		if err != nil {
			return err
		}
		stopped = bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" T"))
	}
	during()
	return nil
}

func notify(listener int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), request, uintptr(arg))
	return errno
}

// position is a call of a command: the n-th at its site, from 0. Calls of other sites come in an order that depends
// on threads.
type position struct {
	kind string
	path string // without numbers of processes and the like
	site site
	n    int
}

func (p position) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s", p.kind, p.path)) + fmt.Sprintf(" %d, in %v", p.n+1, p.site)
}

// counter tells each call its position.
type counter map[position]int

func (c counter) next(k call) position {
	p := position{kind: k.kind, path: numbers.ReplaceAllString(k.path, "N"), site: k.site}
	n := c[p]
	c[p]++
	p.n = n
	return p
}

var numbers = regexp.MustCompile("[0-9]{2,}")
