// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// One agent at a time works on a datapath. The lock is an flock on a directory beside that of the pins, since a BPF file
// system has no files; the pins' own is taken by each call that changes something.

func lockDir(pinsDir string) string { return pinsDir + "_agent" }

// lock waits for the lock, and calls waiting if it has to. It ends with the process.
func lock(ctx context.Context, dir string, waiting func()) (unlock func(), err error) {
	for said := false; ; {
		unlock, err := tryLock(dir)
		if unlock != nil || err != nil {
			return unlock, err
		}
		if !said {
			waiting()
			said = true
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// tryLock returns nil if another has the lock.
func tryLock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the lock: %w", err)
	}
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // removed by the one who had it: again
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	mine, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if there, err := os.Stat(dir); err != nil || !os.SameFile(mine, there) {
		f.Close()
		return nil, nil
	}
	return func() {
		_ = os.Remove(dir)
		f.Close()
	}, nil
}

// sleep returns the context's error if it ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
