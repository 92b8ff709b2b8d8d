// SPDX-License-Identifier: Apache-2.0

// Package filelock takes the exclusive lock of a file or a directory, flock(2), and waits for it.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTimeout is returned when another process has had the lock for longer than was to be waited.
var ErrTimeout = errors.New("locked by another process")

// noticeable is after how long somebody is told.
const noticeable = time.Second

// Take takes the lock of f, until f is closed or the process ends. If another process has it, Take waits as long as limit says:
// 0 not at all, a negative one as long as the context lasts. It waits in the kernel's queue, which a process that polls
// would never be served from. If waiting is not nil, it is called after a second.
//
// If it fails, it closes f. Returns [ErrTimeout], or an error that names f and wraps the context's or the kernel's.
func Take(ctx context.Context, f *os.File, limit time.Duration, waiting func()) error {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		if limit != 0 {
			return wait(ctx, f, limit, waiting)
		}
		f.Close()
		return ErrTimeout
	}
	return taken(f, err)
}

func wait(ctx context.Context, f *os.File, limit time.Duration, waiting func()) error {
	var timeout, notice <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeout = timer.C
	}
	if waiting != nil {
		timer := time.NewTimer(noticeable)
		defer timer.Stop()
		notice = timer.C
	}
	done := make(chan error, 1)
	go func() { done <- flock(f, unix.LOCK_EX) }()
	var err error
	for err == nil {
		select {
		case err := <-done:
			return taken(f, err)
		case <-notice:
			waiting()
		case <-timeout:
			err = ErrTimeout
		case <-ctx.Done():
			err = fmt.Errorf("waiting for the lock of %s: %w", f.Name(), ctx.Err())
		}
	}
	// The call cannot be interrupted: when the lock comes after all, it is given back at once.
	go func() {
		<-done
		f.Close()
	}()
	return err
}

// InPlace tells whether f is still what its path leads to. A file that is removed by the one who has its lock is not.
func InPlace(f *os.File) (bool, error) {
	locked, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(locked, there), err
}

func taken(f *os.File, err error) error {
	if err != nil {
		err = fmt.Errorf("locking %s: %w", f.Name(), err)
		f.Close()
	}
	return err
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
