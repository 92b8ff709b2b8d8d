// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/sandbox"
)

// holderEnv makes the test binary a process that holds a namespace in one of the ways of holders.
const holderEnv = "REVSK_NETNS_TEST_HOLDER"

// holders are the ways in which a process can hold a namespace that it has made with its main thread.
// Each leaves it in one place.
var holders = map[string]func() error{
	"thread": func() error { return nil },
	"file": func() error {
		_, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY, 0)
		return errors.Join(err, unix.Unshare(unix.CLONE_NEWNET))
	},
	"socket": func() error {
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		return errors.Join(err, unix.Unshare(unix.CLONE_NEWNET))
	},
	"mount elsewhere": func() error {
		const path = "/mnt/a name"
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", "/mnt", "tmpfs", 0, ""),
			os.WriteFile(path, nil, 0o444),
			unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""),
			unix.Unshare(unix.CLONE_NEWNET),
		)
	},
}

func init() {
	if os.Getenv(holderEnv) != "" {
		runtime.LockOSThread() // the main thread, here
	}
}

func TestMain(m *testing.M) {
	if how := os.Getenv(holderEnv); how != "" {
		if err := hold(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(sandbox.TestMain(m.Run))
}

func hold(how string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	inode, err := threadInode()
	if err == nil {
		err = holders[how]()
	}
	if err != nil {
		return err
	}
	fmt.Println(inode)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func threadInode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat("/proc/thread-self/ns/net", &st)
	return st.Ino, err
}

// startHolder starts a process that holds a namespace of its own until the end of the test.
func startHolder(t *testing.T, how string) (pid int, inode uint64) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holderEnv+"="+how)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		assert.NoError(t, cmd.Wait())
	})
	_, err = fmt.Fscan(bufio.NewReader(stdout), &inode)
	require.NoError(t, err, "holding by %s", how)
	return cmd.Process.Pid, inode
}

// inNew calls f on a thread in a new namespace, which goes with the thread.
func inNew(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go onOwnThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	})
	require.NoError(t, <-done)
}

// name mounts the namespace of the thread as `ip netns` does.
func name(dir, as string) error {
	path := filepath.Join(dir, as)
	return errors.Join(os.WriteFile(path, nil, 0o444),
		unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
}
