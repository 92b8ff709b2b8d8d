// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/bpfiter"
)

// iterate runs a program on every socket that has storage in m. For whole see [bpfiter.Run].
func iterate(ctx context.Context, prog *ebpf.Program, m *ebpf.Map) (whole bool, err error) {
	whole, err = bpfiter.RunProgram(ctx, prog, m)
	return whole, loadError(err)
}
