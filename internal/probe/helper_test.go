// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
)

// On every kernel that is supported these are there.
func TestHelpersOfEveryKernelAreFound(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	for _, prog := range []ebpf.ProgramType{ebpf.CGroupSockAddr, ebpf.CGroupSock} {
		for _, helper := range []asm.BuiltinFunc{
			asm.FnSkStorageGet, asm.FnGetNetnsCookie, asm.FnGetSocketCookie, asm.FnMapLookupElem, asm.FnKtimeGetNs,
		} {
			have, err := Helper(prog, helper)
			require.NoError(t, err, "%v %v", prog, helper)
			require.True(t, have, "%v %v", prog, helper)
		}
	}
}

func TestHelpersOfOthersAreNot(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	for _, helper := range []asm.BuiltinFunc{
		asm.FnSkbStoreBytes, // of packets
		1 << 20,             // of nobody
	} {
		have, err := Helper(ebpf.CGroupSockAddr, helper)
		require.NoError(t, err, helper)
		require.False(t, have, helper)
	}
}

// What verifiers said that were asked.
func TestVerdicts(t *testing.T) {
	for line, unknown := range map[string]bool{
		"invalid func unknown#187":                                              true,
		"5: (85) call unknown#1048576\ninvalid func unknown#1048576":            true,
		"unknown func bpf_skb_store_bytes#9":                                    true,
		"program of this type cannot use helper bpf_skb_store_bytes#9":          true,
		"R1 type=scalar expected=map_ptr":                                       false,
		"0: (85) call bpf_set_retval#187: R1 is not a scalar":                   false,
		"func#0 @0\nR2 type=inv expected=fp, pkt, pkt_meta, map_key, map_value": false,
	} {
		require.Equal(t, unknown, isUnknown([]string{"0: R1=ctx()", line}), line)
	}
}
