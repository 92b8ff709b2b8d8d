// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// Flags win over the environment, which wins over the file.
func TestSettingsOfTheAgent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	read := func(given map[string]string) (*agentSettings, error) {
		return readSettings(&env{Stderr: io.Discard, bpffs: "/sys/fs/bpf"}, given)
	}
	write("terminate: all\nterminate-rate: 7\nterminate-max-share: 50\nterminate-on: [quarantined, maintenance]\nnodeport: false\nto: mirror\nbpffs: /bpf\n")
	t.Setenv("REVSK_CONFIG", file)
	t.Setenv("REVSK_TERMINATE_RATE", "8")
	t.Setenv("REVSK_TERMINATE_GRACE", "2s")
	s, err := read(map[string]string{"terminate-grace": "3s", "verbose": "true"})
	require.NoError(t, err)
	opts, err := s.options(&env{Stderr: io.Discard})
	require.NoError(t, err)
	require.Equal(t, agent.Termination{
		Protocols: agent.TerminateAll, Rate: 8, MaxShare: 0.5, Grace: 3 * time.Second, Settle: 3 * time.Second, Hold: 30 * time.Second,
		States: []lbmap.BackendState{lbmap.BackendQuarantined, lbmap.BackendMaintenance},
	}, opts.Termination)
	require.Equal(t, loader.ModeMirror, *opts.To)
	require.Equal(t, "/bpf/revsk", opts.Loader.PinsDir)
	features := loader.DefaultFeatures()
	opts.Loader.ChangeFeatures(&features)
	require.Equal(t, []string{"nodeport=false"}, features.Differences(loader.DefaultFeatures()))
	require.Contains(t, opts.Loader.Said, "nodeport", "or a takeover would ask for it again")

	for text, message := range map[string]string{
		"terminat: udp":             `there is no setting "terminat"`,
		"terminate: tcp":            "use one of udp, all, off",
		"config: x":                 `there is no setting "config"`,
		"terminate-hold: 3":         "missing unit",
		"- a":                       "cannot unmarshal",
		"terminate-on: [away, dry]": `"away" is not one of`,
	} {
		write(text)
		s, err := read(nil)
		if err == nil {
			_, err = s.options(&env{Stderr: io.Discard})
		}
		require.ErrorContains(t, err, message, text)
		require.Equal(t, exitUsage, exitCode(err), text)
	}
	t.Setenv("REVSK_TERMINATE_RATE", "many")
	_, err = read(nil)
	require.ErrorContains(t, err, `REVSK_TERMINATE_RATE="many"`)
	t.Setenv("REVSK_TERMINATE_RATE", "1")
	require.NoError(t, os.Remove(file))
	_, err = read(nil)
	require.ErrorContains(t, err, file)
}

func exitCode(err error) int {
	_, code := explain("revsk agent", err)
	return code
}

// syncBuffer is what an agent that runs has written so far.
type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// The command as a service: it tells systemd how it is, serves its pages, reads its settings again, and ends.
func TestAgentAsAService(t *testing.T) {
	p := newPlace(t)
	dir := t.TempDir()
	notified := make(chan string, 1000)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { socket.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			notified <- string(buf[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	hears := func(what string) {
		t.Helper()
		deadline := time.After(2 * time.Minute)
		for {
			select {
			case got := <-notified:
				if strings.HasPrefix(got, what) {
					return
				}
			case <-deadline:
				require.FailNow(t, "not notified", what)
			}
		}
	}
	file, listen := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "agent.sock")
	require.NoError(t, os.WriteFile(file, []byte("log: json\n"), 0o600))

	ctx, cancel := context.WithCancel(t.Context())
	var stderr syncBuffer
	done := make(chan int, 1)
	e := &env{Stdout: io.Discard, Stderr: &stderr}
	go func() {
		done <- run(ctx, e, p.args("agent", "--config", file, "--listen", "unix:"+listen, "--legacy-entries", "1000", "--survey-every", "1s"))
	}()
	hears("READY=1")
	hears("STATUS=the node is right")
	hears("WATCHDOG=1")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", listen)
	}}}
	page := func(path string) string {
		t.Helper()
		resp, err := client.Get("http://agent" + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Equal(t, 200, resp.StatusCode)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(text)
	}
	require.Equal(t, "ok\n", page("/healthz"))
	require.Contains(t, page("/metrics"), "\nrevsk_ready 1\n")
	require.Contains(t, page("/metrics"), "\nprocess_cpu_seconds_total ")
	require.Contains(t, stderr.String(), `"msg":"loaded"`)

	// What is wrong changes nothing.
	require.NoError(t, os.WriteFile(file, []byte("log: xml\n"), 0o600))
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGHUP))
	hears("RELOADING=1")
	hears("READY=1")
	require.Contains(t, stderr.String(), "they stay as they were")
	require.NoError(t, os.WriteFile(file, []byte("nodeport: false\n"), 0o600))
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGHUP))
	hears("RELOADING=1")
	require.Eventually(t, func() bool { return strings.Contains(p.run("status").stdout, "nodeport=false") }, 2*time.Minute, 100*time.Millisecond)

	// When what has changed has been told.
	require.Eventually(t, func() bool {
		before := strings.Count(stderr.String(), "\n")
		time.Sleep(3 * time.Second)
		return strings.Count(stderr.String(), "\n") == before
	}, 2*time.Minute, time.Millisecond, "a line when nothing happens: %s", &stderr)

	cancel()
	require.Equal(t, 0, <-done)
	hears("STOPPING=1")
	require.Equal(t, 0, p.run("status").code, "the datapath runs on")
	require.NoFileExists(t, listen)
}

// Clients that send or read nothing, whose requests never end, or that come again and again keep no other client away, and take
// no more descriptors than they may.
func TestSlowClientsOfTheAgent(t *testing.T) {
	large := strings.Repeat("x", 512<<10)
	var s server
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = io.WriteString(w, large)
		}
	})
	listen := filepath.Join(t.TempDir(), "agent.sock")
	for kind, request := range map[string]string{
		"nothing":      "",
		"half of it":   "GET / HTTP/1.1\r\nHost: agent\r\nX-A: ",
		"no body":      "POST / HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000000\r\n\r\n",
		"never reads":  "GET /large HTTP/1.1\r\nHost: agent\r\n\r\n",
		"another":      "GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
		"large header": "GET / HTTP/1.1\r\nHost: agent\r\nX-A: " + strings.Repeat("x", 8<<10),
	} {
		t.Run(kind, func(t *testing.T) {
			require.NoError(t, s.listen("unix:"+listen))
			defer func() { require.NoError(t, s.listen(noListen)) }()
			clients := 1000
			if kind == "never reads" {
				clients /= 5 // each answer takes its time
			}
			before := len(openFiles(t))
			var all []net.Conn
			defer func() {
				for _, c := range all {
					c.Close()
				}
			}()
			for range clients {
				c, err := net.Dial("unix", listen)
				require.NoError(t, err)
				all = append(all, c)
				_, _ = io.WriteString(c, request) // it may be closed by now
			}
			client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", listen)
				}}}
			for range 10 {
				resp, err := client.Get("http://agent/")
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, 200, resp.StatusCode)
			}
			require.Eventually(t, func() bool { return len(openFiles(t))-before <= clients+mostConnections }, 10*time.Second, 10*time.Millisecond)
		})
	}
}

func openFiles(t *testing.T) []os.DirEntry {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return files
}

// A client that has connected does not stay for ever.
func TestTheAgentEndsSlowConnections(t *testing.T) {
	var s server
	require.NoError(t, s.listen("unix:"+filepath.Join(t.TempDir(), "agent.sock")))
	defer s.close()
	for name, timeout := range map[string]time.Duration{
		"header or body": s.http.ReadTimeout, "answer": s.http.WriteTimeout, "between requests": s.http.IdleTimeout,
	} {
		require.Positive(t, timeout, name)
		require.LessOrEqual(t, timeout, 2*time.Minute, name)
	}
}
