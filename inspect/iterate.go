// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// iterate runs a program on every socket that has storage in m.
//
// If whole is true the kernel went through the map in one go, and no socket was missed that was there
// all the time. It pauses after 1,000,000 sockets, and then goes on by counting: a socket that is
// closed in between makes it miss another one.
func iterate(ctx context.Context, prog *ebpf.Program, m *ebpf.Map) (whole bool, err error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: m})
	if err != nil {
		return false, loadError(fmt.Errorf("attaching iterator: %w", err))
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return false, loadError(fmt.Errorf("opening iterator: %w", err))
	}
	defer r.Close()
	return drain(ctx, r)
}

// drain reads an iterator that has no output to its end.
func drain(ctx context.Context, r io.Reader) (whole bool, err error) {
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
