// SPDX-License-Identifier: Apache-2.0

// Package blocked gives up calls that another process keeps blocked in the kernel.
//
// A process can keep one of its sockets locked for as long as it likes, for example by a send from memory that a file system does
// not deliver. Whoever wants the lock waits for it in the kernel, where nothing interrupts it. So what needs the locks of sockets
// of others is called on a thread that can be left behind.
package blocked

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned for a call that was given up.
var ErrLocked = errors.New("a process keeps a socket locked")

// For so many looks in a row a thread has to wait in the kernel to be given up: 2 s. What waits for a lock that others use and
// give back is seen running, or not waiting, in between.
const (
	lookEvery = 100 * time.Millisecond
	looks     = 20
)

// left are the calls of all kinds that were given up and are still blocked.
var left atomic.Int32

// Waiting tells whether calls are still blocked that were given up. Then the kernel does not end this process before they are not.
func Waiting() bool { return left.Load() > 0 }

// Calls are calls of a kind.
type Calls struct {
	mu   sync.Mutex
	left map[any]int // how many were given up and are still blocked, by what they are about
}

// most is how many calls of a kind are left behind, which is a thread for each. Who keeps sockets locked needs as many.
const most = 256

// Do calls f, on a thread of its own, and returns its error; or one wrapping [ErrLocked] if the thread is blocked in the kernel.
// Then f goes on when it can, and what it uses is its own from then on. Until it has ended, another about the same is not begun.
// Either way, free is called in the end.
func (c *Calls) Do(about any, free func(), f func() error) error {
	c.mu.Lock()
	isLeft := c.left[about] > 0 || len(c.left) >= most
	c.mu.Unlock()
	if isLeft {
		free()
		return fmt.Errorf("%w, and is waited for already", ErrLocked)
	}
	thread, done := make(chan int, 1), make(chan error, 1)
	givenUp := false // under the lock
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		err := f()
		free()
		c.mu.Lock()
		defer c.mu.Unlock()
		if givenUp {
			left.Add(-1)
			if c.left[about]--; c.left[about] == 0 {
				delete(c.left, about)
			}
		}
		done <- err
	}()
	stat := fmt.Sprintf("/proc/self/task/%d/stat", <-thread)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for waiting := 0; waiting < looks; {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
		if waiting++; !isBlocked(stat) {
			waiting = 0
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case err := <-done: // just now
		return err
	default:
	}
	if c.left == nil {
		c.left = make(map[any]int)
	}
	givenUp = true
	c.left[about]++
	left.Add(1)
	return ErrLocked
}

// isBlocked tells whether a thread waits in the kernel and cannot be interrupted (state D of proc_pid_stat(5)). Without /proc
// nobody can tell.
func isBlocked(stat string) bool {
	text, err := os.ReadFile(stat)
	if err != nil {
		return false
	}
	_, state, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
	return ok && len(state) > 0 && state[0] == 'D'
}
