// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// serve runs everything that the clients ask, on the address of a backend. It answers with the backend's name.
func serve(t *testing.T, backend, name string) {
	t.Helper()
	require.NoError(t, inBackends(func() error {
		datagrams, err := net.ListenPacket("udp4", backend+":7000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { datagrams.Close() })
		streams, err := net.Listen("tcp4", backend+":7000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { streams.Close() })
		web, err := net.Listen("tcp4", backend+":8080")
		if err != nil {
			return err
		}
		go answerDatagrams(datagrams, name)
		go answerStreams(streams, name)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, port, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s %s", name, port)
		})}
		t.Cleanup(func() { server.Close() })
		go func() { _ = server.Serve(web) }()
		return nil
	}))
	run(t, exec.Command("ip", "netns", "exec", "backends", "redis-server", "--bind", backend, "--save", "", "--dir", t.TempDir(),
		"--protected-mode", "no", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"), io.Discard)
}

func answerDatagrams(c net.PacketConn, name string) {
	for {
		buf := make([]byte, 100)
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(writerTo{c, from}, "%s\n", name)
	}
}

// writerTo writes datagrams to one address.
type writerTo struct {
	net.PacketConn
	addr net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.addr) }

func answerStreams(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if _, err := fmt.Fprintln(c, name); err != nil {
					return
				}
			}
		}()
	}
}

// run starts a program, and ends it when the test ends.
func run(t *testing.T, cmd *exec.Cmd, out io.Writer) {
	t.Helper()
	cmd.Stdout = out
	cmd.Stderr = testWriter{t}
	cmd.WaitDelay = time.Second
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
}

// testWriter writes to a test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
