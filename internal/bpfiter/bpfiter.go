// SPDX-License-Identifier: Apache-2.0

// Package bpfiter loads and runs BPF iterators.
package bpfiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/blocked"
)

// Attach makes an iterator of a program; over the elements of m, if that is not nil.
func Attach(prog *ebpf.Program, m *ebpf.Map) (*link.Iter, error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: m})
	if err != nil {
		return nil, fmt.Errorf("attaching iterator: %w", err)
	}
	return it, nil
}

// RunProgram attaches a program that has no output, see [Attach], and runs it once, see [Run].
func RunProgram(ctx context.Context, prog *ebpf.Program, m *ebpf.Map) (whole bool, err error) {
	it, err := Attach(prog, m)
	if err != nil {
		return false, err
	}
	defer it.Close()
	return Run(ctx, it)
}

// Run runs an iterator that has no output once, for the network namespace of the calling thread where that matters.
//
// If whole is true the kernel went through its objects in one go, and none was missed that was there
// all the time. It pauses after 1,000,000 of them, and then goes on by counting: one that goes away in
// between makes it miss another one.
func Run(ctx context.Context, it *link.Iter) (whole bool, err error) {
	r, err := it.Open()
	if err != nil {
		return false, fmt.Errorf("opening iterator: %w", err)
	}
	defer r.Close()
	return Drain(ctx, r)
}

// visits are the readings of iterators that lock sockets. Where one is blocked, others would be.
var visits blocked.Calls

// Visit is [Run] for an iterator over the sockets of a protocol, which waits for the lock of each (TCP since Linux 5.15, UDP since
// 6.5). Returns an error wrapping [blocked.ErrLocked] if a process keeps one locked. Then the program goes on when it can, with
// whatever its maps hold by then.
func Visit(ctx context.Context, it *link.Iter) error {
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("opening iterator: %w", err)
	}
	return visits.Do(nil, func() { r.Close() }, func() error {
		_, err := Drain(ctx, r)
		return err
	})
}

// Records runs an iterator once, and returns what it writes: records of a size in bytes. Each is valid until the
// next one. The sequence ends after an error.
func Records(ctx context.Context, it *link.Iter, size int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		r, err := it.Open()
		if err != nil {
			yield(nil, fmt.Errorf("opening iterator: %w", err))
			return
		}
		defer r.Close()
		w := &recordWriter{size: size, yield: yield}
		if _, err := copyAll(ctx, w, r); err != nil && !w.stopped {
			yield(nil, err)
		}
	}
}

// recordWriter yields what is written to it, a record at a time.
type recordWriter struct {
	size    int
	yield   func([]byte, error) bool
	begun   []byte // of a record
	stopped bool
}

var errStopped = errors.New("nobody wants more")

func (w *recordWriter) Write(p []byte) (int, error) {
	n := len(p)
	if len(w.begun) > 0 {
		p = append(w.begun, p...)
	}
	for ; len(p) >= w.size; p = p[w.size:] {
		if !w.yield(p[:w.size], nil) {
			w.stopped = true
			return 0, errStopped
		}
	}
	w.begun = append([]byte(nil), p...)
	return n, nil
}

// Drain reads an iterator to its end. For whole see [Run].
func Drain(ctx context.Context, r io.Reader) (whole bool, err error) {
	return copyAll(ctx, io.Discard, r)
}

func copyAll(ctx context.Context, w io.Writer, r io.Reader) (whole bool, err error) {
	whole = true
	for buf := make([]byte, 32<<10); ; { // the kernel's own buffer
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := r.Read(buf)
		if _, err := w.Write(buf[:max(0, n)]); err != nil {
			return false, err
		}
		switch {
		case err == io.EOF:
			return whole, nil
		case errors.Is(err, unix.EAGAIN):
			whole = false
		case err != nil:
			return false, fmt.Errorf("reading iterator: %w", err)
		}
	}
}
