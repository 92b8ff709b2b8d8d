// SPDX-License-Identifier: Apache-2.0

package iter

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
)

// Where an iterator has functions of its own, a kernel before 6.4 stops when it reads through a pointer that leads nowhere. Those that
// run a loop as a function (Linux 5.17) read through none that can.
func TestIteratorsHaveNoFunctions(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"descriptor": LoadDescriptor, "destroy": LoadDestroy, "dump": LoadDump, "files": LoadFiles, "fill": LoadFill, "look": LoadLook, "queued": LoadQueued,
	} {
		spec, err := load()
		require.NoError(t, err)
		for _, p := range spec.Programs {
			functions, loop := false, false
			for _, ins := range p.Instructions {
				functions = functions || ins.IsFunctionCall()
				loop = loop || ins.IsBuiltinCall() && ins.Constant == int64(asm.FnLoop)
			}
			if p.Type == ebpf.Tracing {
				require.False(t, functions && !loop, "%s: %s", name, p.Name)
			}
		}
	}
}
