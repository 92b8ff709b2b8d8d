// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// failAt makes a load fail at a step, after f.
func failAt(at string, f func()) (loader.Options, error) {
	injected := errors.New("injected")
	return options().WithStep(func(step string) error {
		if step != at {
			return nil
		}
		f()
		return injected
	}), injected
}

// Else the next one would find pins that vanish under its hands.
func TestAFailedLoadHasTakenEverythingBackWhenItReleasesTheLock(t *testing.T) {
	cleanUp(t)
	left := make(chan error)
	opts, injected := failAt("attach revsk_sendmsg6", func() {
		dir, err := os.Open(pinsDir)
		require.NoError(t, err)
		go func() {
			defer dir.Close()
			runtime.LockOSThread()
			// Where this is allowed, the thread runs before the loader goes on, whatever else the machine does.
			_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
			err := unix.Flock(int(dir.Fd()), unix.LOCK_EX)
			if err == nil {
				err = unix.Access(pinsDir, unix.F_OK)
			}
			left <- err
		}()
		time.Sleep(10 * time.Millisecond)
	})
	_, err := loader.Load(t.Context(), opts)
	require.ErrorIs(t, err, injected)
	require.ErrorIs(t, <-left, os.ErrNotExist, "the directory of the pins goes last")
}

func TestALoadThatWaitsForOneThatFailsSucceeds(t *testing.T) {
	cleanUp(t)
	waited := make(chan error)
	opts, injected := failAt("attach revsk_sendmsg6", func() {
		go func() {
			second := options().WithStep(func(step string) error {
				if step == "load programs" && !locked(pinsDir) {
					return errors.New("it has the lock of a directory that is gone")
				}
				return nil
			})
			second.Wait = -1
			_, err := loader.Load(context.Background(), second)
			waited <- err
		}()
		time.Sleep(100 * time.Millisecond)
	})
	_, err := loader.Load(t.Context(), opts)
	require.ErrorIs(t, err, injected)
	require.NoError(t, <-waited)
	dp, err := loader.Open(options())
	require.NoError(t, err)
	defer dp.Close()
	status, err := dp.Status()
	require.NoError(t, err)
	require.True(t, status.Complete())
}

// locked tells whether somebody has the lock of a directory.
func locked(path string) bool {
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer dir.Close()
	return errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}
