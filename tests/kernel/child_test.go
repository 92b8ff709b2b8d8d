// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// A child is another process of the test, this executable in another role: it inherits a socket, or
// opens sockets as it is told, says "ready", and holds them until it is killed or its standard input
// ends. For each line of its standard input it says "ok" if its sockets are connected as it was told, as
// getpeername has it.
const childEnv = "REVSK_KERNEL_TEST_CHILD"

// errand is what the child is to do. Its sockets are all of one kind.
type errand struct {
	Domain, Protocol int
	Sockets          int // to open
	Connect, Send    netip.AddrPort
	Inherited        bool    // its sockets are one that it has inherited, connected already
	Interfere        bool    // calls setsockopt on it as migrate does, all the time
	Hide             bool    // has it in the file table of one thread only, until it is asked
	Namespaces       uintptr // of its own: flags of clone(2)
}

func childRole() string { return os.Getenv(childEnv) }

// inheritedFD is the first that exec.Cmd.ExtraFiles has.
const inheritedFD = 3

func runChild() int {
	var e errand
	err := json.Unmarshal([]byte(childRole()), &e)
	if err == nil && e.Namespaces&unix.CLONE_NEWNET != 0 {
		err = sandbox.LoopbackUp()
	}
	var sockets []*socket
	if e.Inherited {
		sockets = append(sockets, &socket{family: e.family(), protocol: e.Protocol, fd: inheritedFD})
	}
	for i := 0; i < e.Sockets && err == nil; i++ {
		var x *socket
		x, err = e.open()
		sockets = append(sockets, x)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if e.Interfere {
		interfere(sockets[0].fd)
	}
	show := func() error { return nil }
	if e.Hide {
		show = hide(sockets[0])
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		err := show()
		if err == nil && e.Connect.IsValid() {
			err = e.check(sockets)
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	return 0
}

func (e errand) family() family {
	return family{domain: e.Domain, mapped: e.Domain == unix.AF_INET6 && e.Connect.Addr().Is4()}
}

func (e errand) open() (*socket, error) {
	x, err := newSocket(e.family(), e.Protocol)
	if err != nil {
		return nil, err
	}
	if e.Connect.IsValid() {
		if err := x.tryConnect(e.Connect); err != nil {
			return nil, err
		}
	}
	if e.Send.IsValid() {
		return x, x.trySendTo(e.Send, "from a child")
	}
	return x, nil
}

func (e errand) check(sockets []*socket) error {
	for _, x := range sockets {
		peer, err := x.tryPeername()
		if err == nil && peer != e.Connect {
			err = fmt.Errorf("connected to %v, getpeername shows %v", e.Connect, peer)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	says  *bufio.Reader
}

// spawn starts a child, which inherits the socket if there is one, and waits until it is ready.
func (s *scene) spawn(e errand, x *socket) *child {
	s.Helper()
	e.Domain, e.Protocol = s.domain, s.protocol
	role, err := json.Marshal(e)
	require.NoError(s, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(role))
	cmd.Stderr = os.Stderr
	if x != nil {
		fd, err := unix.FcntlInt(uintptr(x.fd), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(s, err)
		file := os.NewFile(uintptr(fd), "socket")
		defer file.Close()
		cmd.ExtraFiles = []*os.File{file}
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(s, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(s, err)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: e.Namespaces}
	require.NoError(s, cmd.Start())
	c := &child{cmd: cmd, stdin: stdin, says: bufio.NewReader(stdout)}
	s.Cleanup(c.kill)
	s.hears(c, "ready")
	return c
}

// hears waits for a child to say something.
func (s *scene) hears(c *child, want string) {
	s.Helper()
	line, err := c.says.ReadString('\n')
	require.NoError(s, err, "waiting for a child")
	require.Equal(s, want+"\n", line)
}

// checks has a child look whether its sockets are connected as they were.
func (s *scene) checks(c *child) {
	s.Helper()
	_, err := io.WriteString(c.stdin, "check\n")
	require.NoError(s, err)
	s.hears(c, "ok")
}

// exit lets the child end by itself.
func (c *child) exit() {
	_ = c.stdin.Close()
	_ = c.cmd.Wait()
}

// kill ends the child with SIGKILL.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// passedAway sends a copy of the socket over a Unix socket and closes both of the latter, so that the
// copy is dropped in flight, in no file table.
func (s *scene) passedAway(x *socket) {
	s.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(s, err)
	require.NoError(s, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(x.fd), nil, 0))
	require.NoError(s, unix.Close(pair[0]))
	x.close()
	// Still there, in flight.
	time.Sleep(tick)
	require.Equal(s, s.before.Released, s.counters().Released)
	require.NoError(s, unix.Close(pair[1]))
}
