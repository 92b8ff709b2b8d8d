// SPDX-License-Identifier: Apache-2.0

// Package childproc starts processes that end with this one, however it ends.
package childproc

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Start starts a process to which the kernel sends SIGKILL, or another signal that cmd sets as Pdeathsig, when this process ends.
//
// The kernel sends that signal when the thread ends that has started the process, and Go ends a thread with the goroutine that has
// locked itself to it. So one thread starts all of them, and lasts. They are in its namespaces, which are those of this process.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	result := make(chan error)
	starts() <- start{cmd, result}
	return <-result
}

type start struct {
	cmd    *exec.Cmd
	result chan<- error
}

var starts = sync.OnceValue(func() chan<- start {
	c := make(chan start)
	go func() {
		runtime.LockOSThread()
		for s := range c {
			s.result <- s.cmd.Start()
		}
	}()
	return c
})
