// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/childproc"
)

// childEnv holds what a child process is to do.
const childEnv = "REVSK_SELFTEST_CHILD"

// What a child does.
const (
	roleHold = "hold" // open sockets and wait to be killed
	roleKeep = "keep" // receive a socket, and close it when told
)

type childJob struct {
	Role    string
	Targets []target
}

// target is what the holder opens sockets to.
type target struct {
	Protocol, Socket int
	Service          netip.AddrPort
	Count            int
}

// readyLine is what the holder prints when its sockets are open.
const readyLine = "ready\n"

// keeperFD is where the keeper has its end of the socket pair.
const keeperFD = 3

// ChildMain is to be called first of all by a program that calls [Run], which starts that program
// again for the cases that need another process. It returns at once in any other process.
func ChildMain() {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	var job childJob
	err := json.Unmarshal([]byte(text), &job)
	if err == nil {
		switch job.Role {
		case roleHold:
			err = hold(job.Targets)
		case roleKeep:
			err = keep()
		default:
			err = fmt.Errorf("unknown role %q", job.Role)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hold is the child that is killed.
func hold(targets []target) error {
	for _, t := range targets {
		for range t.Count {
			if _, err := dial(flavor{protocol: t.Protocol, socket: t.Socket}, t.Service); err != nil {
				return err
			}
		}
	}
	fmt.Print(readyLine)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// keep is the child that another's socket is passed to.
func keep() error {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	err := uninterrupted(func() (err error) {
		n, oobn, _, _, err = unix.Recvmsg(keeperFD, buf, oob, 0)
		return err
	})
	if err != nil || n == 0 {
		return errors.Join(errors.New("waiting for a socket"), err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return errors.Join(errors.New("no socket in the message"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return errors.Join(errors.New("no socket in the message"), err)
	}
	if _, err := unix.Write(keeperFD, buf); err != nil {
		return err
	}
	err = uninterrupted(func() error {
		_, err := unix.Read(keeperFD, buf)
		return err
	})
	if err != nil {
		return err
	}
	if err := unix.Close(fds[0]); err != nil {
		return err
	}
	_, err = unix.Write(keeperFD, buf)
	return err
}

// child is a running child process.
type child struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	stdin  io.Closer
	ended  bool
}

func newChild(ctx context.Context, job childJob) (*child, error) {
	text, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, "/proc/self/exe")}
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	c.cmd.Stderr = &c.stderr
	return c, nil
}

// kill ends the child with SIGKILL and returns when it is gone, and its sockets with it.
func (c *child) kill() error {
	if c.ended {
		return nil
	}
	c.ended = true
	err := c.cmd.Process.Kill()
	if c.stdin != nil {
		c.stdin.Close()
	}
	var exit *exec.ExitError
	if waitErr := c.cmd.Wait(); !errors.As(waitErr, &exit) {
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return fmt.Errorf("killing a child process: %w", err)
	}
	return nil
}

// failed explains why something did not work out with a child.
func (c *child) failed(doing string, err error) error {
	killErr := c.kill()
	if text := strings.TrimSpace(c.stderr.String()); text != "" {
		err = errors.New(text)
	}
	return errors.Join(fmt.Errorf("child process: %s: %w", doing, err), killErr)
}

// startHolder starts a process and returns when it holds its sockets.
func startHolder(ctx context.Context, targets []target) (*child, error) {
	c, err := newChild(ctx, childJob{roleHold, targets})
	if err != nil {
		return nil, err
	}
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := childproc.Start(c.cmd); err != nil {
		return nil, fmt.Errorf("starting a child process: %w", err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil && line != readyLine {
		err = fmt.Errorf("it says %q: does main call ChildMain?", line)
	}
	if err != nil {
		return nil, c.failed("opening sockets", err)
	}
	return c, nil
}

// keeper is a process that takes a socket.
type keeper struct {
	*child
	conn int
}

func startKeeper(ctx context.Context) (*keeper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socketpair")
	defer theirs.Close()
	c, err := newChild(ctx, childJob{Role: roleKeep})
	if err == nil {
		c.cmd.ExtraFiles = []*os.File{theirs}
		err = childproc.Start(c.cmd)
	}
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("starting a child process: %w", err)
	}
	tv := unix.Timeval{Sec: patience}
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(pair[0])
		return nil, c.failed("setsockopt", err)
	}
	return &keeper{c, pair[0]}, nil
}

// take passes the socket and returns when the keeper has it.
func (k *keeper) take(fd int) error {
	if err := unix.Sendmsg(k.conn, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return k.failed("passing a socket", err)
	}
	return k.answer("passing a socket")
}

// closeTaken returns when the keeper has closed the socket.
func (k *keeper) closeTaken() error {
	if _, err := unix.Write(k.conn, []byte{0}); err != nil {
		return k.failed("closing the socket", err)
	}
	return k.answer("closing the socket")
}

func (k *keeper) answer(doing string) error {
	var n int
	err := uninterrupted(func() (err error) {
		n, err = unix.Read(k.conn, make([]byte, 1))
		return err
	})
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return k.failed(doing, err)
	}
	return nil
}

func (k *keeper) kill() error {
	err := k.child.kill()
	if k.conn >= 0 {
		unix.Close(k.conn)
		k.conn = -1
	}
	return err
}
