// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/revsk/revsk/internal/filelock"
)

// One agent at a time works on a datapath. The lock is an flock on a directory beside that of the pins, since a BPF file
// system has no files; the pins' own is taken by each call that changes something.

func lockDir(pinsDir string) string { return pinsDir + "_agent" }

// lock waits for the lock, and calls waiting if that takes more than a moment. It ends with the process.
func lock(ctx context.Context, dir string, waiting func()) (unlock func(), err error) {
	waiting = sync.OnceFunc(waiting)
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the directory of the lock: %w", err)
		}
		f, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed by the one who had it
		}
		if err != nil {
			return nil, err
		}
		if err := filelock.Take(ctx, f, -1, waiting); err != nil {
			return nil, err
		}
		inPlace, err := filelock.InPlace(f)
		if inPlace {
			return func() {
				_ = os.Remove(dir)
				f.Close()
			}, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}
