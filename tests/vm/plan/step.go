// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// outputGrace is how long a step's output is waited for after it has ended: a process that it left
// behind may hold the pipe open for ever.
const outputGrace = 5 * time.Second

// maxText bounds the text of one event, so that a program that never writes a newline is heard too.
const maxText = 32 << 10

// Run runs a step and emits its output and its end. It calls stuck, if not nil, before it kills a
// step that ran out of time. Emit is called by one goroutine at a time.
func (s Step) Run(ctx context.Context, emit func(Event), stuck func()) {
	var mu sync.Mutex
	stream := func(stderr bool) *lines {
		return &lines{emit: func(text string) {
			mu.Lock()
			defer mu.Unlock()
			emit(Event{Output: &Output{Step: s.Name, Stderr: stderr, Text: text}})
		}}
	}
	stdout, stderr := stream(false), stream(true)

	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir, cmd.Env = s.Dir, s.Env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if s.Test {
		cmd.Stderr = stdout
	}
	cmd.WaitDelay = outputGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if stuck != nil {
			stuck()
		}
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}

	start := time.Now()
	err := cmd.Run()
	seconds := time.Since(start).Seconds()
	stdout.flush()
	stderr.flush()

	exit := &Exit{Step: s.Name, Code: -1, Seconds: seconds}
	if cmd.ProcessState != nil {
		exit.Code = cmd.ProcessState.ExitCode()
	}
	var ended *exec.ExitError
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		exit.Error = fmt.Sprintf("killed after %v", s.Timeout)
	case errors.Is(err, exec.ErrWaitDelay):
		exit.Error = "left a process behind that holds its output open"
	case errors.As(err, &ended):
		if exit.Code == -1 {
			exit.Error = ended.Error()
		}
	default:
		exit.Error = err.Error()
	}
	emit(Event{Exit: exit})
}

// lines is a writer that hands on whole lines.
type lines struct {
	buf  []byte
	emit func(string)
}

func (l *lines) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	for {
		end := bytes.IndexByte(l.buf, '\n') + 1
		if end == 0 && len(l.buf) > maxText {
			end = maxText
		}
		if end == 0 {
			return len(p), nil
		}
		l.emit(string(l.buf[:end]))
		l.buf = l.buf[end:]
	}
}

func (l *lines) flush() {
	if len(l.buf) > 0 {
		l.emit(string(l.buf))
		l.buf = nil
	}
}
