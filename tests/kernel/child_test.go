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
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A child is another process of the test, this executable in another role: it inherits a socket, or
// opens sockets as it is told, says "ready", and holds them until it is killed or its standard input
// ends.
const childEnv = "REVSK_KERNEL_TEST_CHILD"

// errand is what the child is to do. Its sockets are all of one kind.
type errand struct {
	Domain, Protocol int
	Sockets          int // to open
	Connect, Send    netip.AddrPort
}

func childRole() string { return os.Getenv(childEnv) }

func runChild() int {
	var e errand
	err := json.Unmarshal([]byte(childRole()), &e)
	for range e.Sockets {
		if err != nil {
			break
		}
		err = e.open()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func (e errand) open() error {
	f := family{domain: e.Domain}
	x, err := newSocket(f, e.Protocol)
	if err != nil {
		return err
	}
	if e.Connect.IsValid() {
		if err := x.tryConnect(e.Connect); err != nil {
			return err
		}
	}
	if e.Send.IsValid() {
		return x.trySendTo(e.Send, "from a child")
	}
	return nil
}

type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
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
	require.NoError(s, cmd.Start())
	c := &child{cmd: cmd, stdin: stdin}
	s.Cleanup(c.kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(s, err, "waiting for a child")
	require.Equal(s, "ready\n", line)
	return c
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
