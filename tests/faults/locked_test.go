// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/lockedsocket"
)

// A process can keep one of its sockets locked. Only what is about that socket is left undone, until the same command is run again.
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
		release := lockedsocket.Lock(t, tcp.fd)
		defer release()
		f()
	}
	// It says what it has done meanwhile, and ends when the lock is given back: the kernel ends no process before.
	goesOn := func(says string, args ...string) {
		t.Helper()
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		require.NoError(t, err)
		defer out.Close()
		cmd := exec.Command(os.Getenv(binaryEnv), commandLine(args)...)
		cmd.Stdout, cmd.Stderr = out, out
		locked(func() {
			require.NoError(t, cmd.Start())
			require.Eventually(t, func() bool {
				text, err := os.ReadFile(out.Name())
				return err == nil && strings.Contains(string(text), says)
			}, time.Minute, 10*time.Millisecond, "%v", args)
			n.inTime("status")
			n.inTime("list")
			everyoneElse(args[0])
		})
		err = cmd.Wait()
		text, _ := os.ReadFile(out.Name())
		require.Contains(t, string(text), "the kernel ends this process", "%v: %v", args, err)
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
	goesOn("a process keeps its socket locked", "migrate")
	n.inTime("migrate")
	require.Equal(t, before, n.answers())
	require.Contains(t, n.run("status", "-o", "json").stdout, `"mode": "storage"`)
	goesOn("a process keeps a socket locked", "terminate", backend4.String()+"/tcp")
	n.inTime("terminate " + backend4.String() + "/tcp")
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
