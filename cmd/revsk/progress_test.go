// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/migrate"
)

func TestProgressSaysCountsRateAndTimeLeft(t *testing.T) {
	for text, p := range map[string]position{
		"visit sockets: 1000 of 5000 (20%), 500/s, 2s, at most 8s left": {migrate.Progress{Step: "visit sockets", Done: 1000, Total: 5000}, 2 * time.Second},
		"visit sockets: 0 of 5000 (0%), 0/s, 2s":                        {migrate.Progress{Step: "visit sockets", Total: 5000}, 2 * time.Second},
		"visit sockets: 5000 of 5000 (100%), 2500/s, 2s":                {migrate.Progress{Step: "visit sockets", Done: 5000, Total: 5000}, 2 * time.Second},
		"visit sockets: 1 of 2 (50%), 0/s, 0s, at most 1s left":         {migrate.Progress{Step: "visit sockets", Done: 1, Total: 2}, 0},
		"verify, 3s": {migrate.Progress{Step: "verify"}, 3 * time.Second},
	} {
		require.Equal(t, text, p.text())
	}
}

func TestProgressOfAStepBeginsAnew(t *testing.T) {
	var p progress
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	p.reportAt(migrate.Progress{Step: "a", Done: 5, Total: 9}, at(0))
	p.reportAt(migrate.Progress{Step: "a", Done: 9, Total: 9}, at(3))
	require.Equal(t, 4*time.Second, p.position(at(4)).elapsed)
	p.reportAt(migrate.Progress{Step: "a", Done: 0, Total: 4}, at(5)) // another round
	require.Equal(t, 1*time.Second, p.position(at(6)).elapsed)
	p.reportAt(migrate.Progress{Step: "b", Done: 1, Total: 4}, at(7))
	require.Equal(t, 2*time.Second, p.position(at(9)).elapsed)
}

func TestProgressIsShownUntilItIsStopped(t *testing.T) {
	var shown atomic.Int32
	p := newProgress(time.Millisecond, func(text string, _ position) {
		assert.Equal(t, "verify, 0s", text)
		shown.Add(1)
	})
	p.report(migrate.Progress{Step: "verify"})
	require.Eventually(t, func() bool { return shown.Load() > 1 }, time.Minute, time.Millisecond)
	p.stop()
}

func TestNothingIsShownAfterStop(t *testing.T) {
	begun := make(chan struct{}, 1000)
	var ended atomic.Bool
	p := newProgress(time.Millisecond, func(string, position) {
		begun <- struct{}{}
		time.Sleep(50 * time.Millisecond)
		ended.Store(true)
	})
	p.report(migrate.Progress{Step: "verify"})
	<-begun
	p.stop()
	require.True(t, ended.Load())
}

func TestProgressAsLogLine(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	position{migrate.Progress{Step: "visit sockets", Done: 1000, Total: 5000}, 2 * time.Second}.log(log)
	require.Contains(t, out.String(), `msg=progress step="visit sockets" elapsed=2s done=1000 total=5000 per_second=500 left_at_most=8s`+"\n")
}

// openTerminal returns both ends of a pseudo terminal.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { screen.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { terminal.Close() })
	require.NoError(t, unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 40}))
	return screen, terminal
}

func TestProgressIsALiveLineOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	screen, terminal := openTerminal(t)
	e := &env{Stderr: terminal}
	report, stop := e.startProgress()
	report(migrate.Progress{Step: "visit sockets", Done: 1000, Total: 5000})
	var seen strings.Builder
	read := func() {
		buf := make([]byte, 4096)
		n, err := screen.Read(buf)
		require.NoError(t, err)
		seen.Write(buf[:n])
	}
	for strings.Count(seen.String(), "\r\x1b[K") < 3 {
		read()
	}
	stop()
	for !strings.HasSuffix(seen.String(), "\r\x1b[K") {
		read()
	}
	require.NotContains(t, seen.String(), "\n")
	for _, line := range strings.Split(seen.String(), "\r\x1b[K") {
		require.LessOrEqual(t, len(line), 39, "narrower than the terminal")
	}
	require.Contains(t, seen.String(), "visit sockets: 1000 of 5000 (20%)")

	// Others get none.
	for _, e := range []*env{{Stderr: terminal, verbose: true}, {Stderr: new(bytes.Buffer)}} {
		report, stop := e.startProgress()
		report(migrate.Progress{Step: "verify"})
		time.Sleep(2 * liveInterval)
		stop()
	}
	waiting, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCINQ)
	require.NoError(t, err)
	require.Zero(t, waiting)
}

func TestQuietHasNoProgress(t *testing.T) {
	report, stop := (&env{Stderr: new(bytes.Buffer), quiet: true}).startProgress()
	stop()
	require.Nil(t, report)
}
