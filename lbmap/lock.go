// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/filelock"
)

// lock is the right to write the maps that are pinned in a directory. Who writes sets the directory's
// time of modification first, so that others know that what they have read is outdated.
type lock struct {
	dir *os.File
}

// version changes with everything that is written under the lock, and with the pins themselves.
type version struct {
	dev, inode uint64
	modified   unix.Timespec
}

// patience is for how long to wait for the lock, and who is told.
type patience struct {
	limit   time.Duration // 0: as long as the context lasts
	waiting func()        // nil: nobody is told
}

// acquire waits in the queue for the lock. The kernel takes it back if this process ends.
func acquire(ctx context.Context, dir string, p patience) (*lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoMap)
	}
	if err != nil {
		return nil, err
	}
	err = filelock.Take(ctx, f, cmp.Or(p.limit, -1), p.waiting)
	if errors.Is(err, filelock.ErrTimeout) {
		return nil, fmt.Errorf("waiting for the lock of %s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.dir.Close() }

func (l *lock) version() (version, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(l.dir.Fd()), &stat); err != nil {
		return version{}, fmt.Errorf("reading the time of %s: %w", l.dir.Name(), err)
	}
	return version{stat.Dev, stat.Ino, stat.Mtim}, nil
}

// outdate gives the directory a time that it has not had.
func (l *lock) outdate() (version, error) {
	v, err := l.version()
	if err != nil {
		return v, err
	}
	next := max(time.Now().UnixNano(), v.modified.Nano()+1)
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(next)}
	if err := unix.UtimesNanoAt(int(l.dir.Fd()), "", times, unix.AT_EMPTY_PATH); err != nil {
		return v, fmt.Errorf("setting the time of %s: %w", l.dir.Name(), err)
	}
	return l.version()
}
