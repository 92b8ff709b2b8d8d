// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/bpfiter"
)

// visit runs a program on every socket of a protocol that there is in the namespace of the calling thread.
func visit(ctx context.Context, prog *ebpf.Program) error {
	it, err := bpfiter.Attach(prog, nil)
	if err != nil {
		return loadError(err)
	}
	defer it.Close()
	return bpfiter.Visit(ctx, it)
}
