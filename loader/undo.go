// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"io"
	"slices"
)

// undoer takes back, in reverse order, what a call did before it failed.
type undoer struct {
	steps []func() error
	held  []io.Closer
}

func (u *undoer) add(f func() error) { u.steps = append(u.steps, f) }

// hold keeps open until close what a step may need.
func (u *undoer) hold(c io.Closer) { u.held = append(u.held, c) }

func (u *undoer) run() error {
	var errs []error
	for _, step := range slices.Backward(u.steps) {
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

func (u *undoer) close() {
	for _, c := range u.held {
		c.Close()
	}
}

// finish takes everything back if the call has failed. To be deferred.
func (u *undoer) finish(err *error) {
	if *err != nil {
		*err = errors.Join(*err, u.run())
	}
	u.close()
}

// closer is a function that closes something.
type closer func()

func (f closer) Close() error {
	f()
	return nil
}
