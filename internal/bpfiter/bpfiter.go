// SPDX-License-Identifier: Apache-2.0

// Package bpfiter runs BPF iterators that have no output of their own.
package bpfiter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Run runs an iterator once, for the network namespace of the calling thread where that matters.
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

// Drain reads an iterator that has no output to its end. For whole see [Run].
func Drain(ctx context.Context, r io.Reader) (whole bool, err error) {
	whole = true
	for buf := make([]byte, 64); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		_, err := r.Read(buf)
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
