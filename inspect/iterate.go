// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/revsk/revsk/internal/bpfiter"
)

// iterate runs a program on every socket that has storage in m. For whole see [bpfiter.Run].
func iterate(ctx context.Context, prog *ebpf.Program, m *ebpf.Map) (whole bool, err error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: m})
	if err != nil {
		return false, loadError(fmt.Errorf("attaching iterator: %w", err))
	}
	defer it.Close()
	whole, err = bpfiter.Run(ctx, it)
	return whole, loadError(err)
}
