// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/internal/sandbox"
)

const beProgram = "REVSK_TEST_EMBEDDING"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		return
	}
	os.Exit(sandbox.TestMain(m.Run))
}

// The program runs, and leaves nothing behind.
func TestProgram(t *testing.T) {
	// Of the sandbox's own network namespace, and none that the kernel gives to a client.
	const listen = "127.0.0.1:9464"
	var stdout bytes.Buffer
	cmd := exec.Command("/proc/self/exe", sandbox.Cgroup(), listen)
	cmd.Env = append(os.Environ(), beProgram+"=yes")
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + listen + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == 200
	}, 2*time.Minute, 100*time.Millisecond)
	resp, err := http.Get("http://" + listen + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(text), "\nrevsk_ready 1\n")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	require.Regexp(t, `^loaded with \d+ changes\n$`, stdout.String())
	require.NoDirExists(t, "/sys/fs/bpf/revsk/links")
}

// The page shows the program as it is.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/embedding.md")
	require.NoError(t, err)
	source, err := os.ReadFile("main.go")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "```go\n")
	require.True(t, ok)
	code, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	require.True(t, strings.HasSuffix(string(source), code))
}
