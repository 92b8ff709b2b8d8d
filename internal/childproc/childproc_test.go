// SPDX-License-Identifier: Apache-2.0

package childproc

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// parentEnv makes the test binary start a child and wait.
const parentEnv = "REVSK_CHILDPROC_PARENT"

// Go never ends the main thread, so no test runs on it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sleep", "60")
	cmd.Stdout = os.Stdout
	if err := Start(cmd); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("started")
	_ = cmd.Wait()
}

func TestAProcessOutlivesTheThreadThatAskedForIt(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	threads := make(chan int)
	go func() {
		defer close(threads)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err = Start(cmd)
		threads <- unix.Gettid()
	}()
	thread := <-threads
	<-threads
	require.NoError(t, err)
	require.Eventually(t, func() bool { return unix.Tgkill(unix.Getpid(), thread, 0) == unix.ESRCH }, time.Minute, time.Millisecond)
	require.NoError(t, stdin.Close())
	require.NoError(t, cmd.Wait(), "it was killed")
}

func TestAProcessEndsWithThisOne(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	parent := exec.Command("/proc/self/exe")
	parent.Env, parent.Stdout, parent.Stderr = append(os.Environ(), parentEnv+"=1"), w, os.Stderr
	require.NoError(t, parent.Start())
	require.NoError(t, w.Close())
	started := make([]byte, len("started\n"))
	_, err = io.ReadFull(r, started)
	require.NoError(t, err)
	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()
	require.NoError(t, r.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err = r.Read(started)
	require.ErrorIs(t, err, io.EOF, "the child has its end of the pipe open")
}

func TestASignalThatIsAskedForIsKept(t *testing.T) {
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	require.NoError(t, Start(cmd))
	require.NoError(t, cmd.Wait())
	require.Equal(t, unix.SIGTERM, cmd.SysProcAttr.Pdeathsig)
}
