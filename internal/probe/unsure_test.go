// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
)

// What the library says when one of its probes fails, for whatever reason.
var errLibrary = fmt.Errorf("creating map x: mmapable maps %w (requires >= v5.5)", ebpf.ErrNotSupported)

func TestAFailedProbeIsNoMissingFeature(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	err := Recheck(errLibrary)
	require.ErrorIs(t, err, ErrUnsure)
	require.NotErrorIs(t, err, ebpf.ErrNotSupported)
	require.EqualError(t, err, "the kernel could not be asked what it can do: creating map x: mmapable maps")
}

func TestTypesThatCouldNotBeReadAreThere(t *testing.T) {
	if !oldkernel.Has(t, "/sys/kernel/btf/vmlinux") {
		oldkernel.SkipWithout(t, "CONFIG_DEBUG_INFO_BTF", false)
	}
	err := Recheck(fmt.Errorf("apply CO-RE relocations: load kernel spec: no BTF found for kernel version 6.18: %w", ebpf.ErrNotSupported))
	require.NotErrorIs(t, err, ebpf.ErrNotSupported)
	require.EqualError(t, err, "the kernel could not be asked what it can do: apply CO-RE relocations: reading the kernel's types")
}

func TestAFailedProbeSaysWhyWhileThatLasts(t *testing.T) {
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need root")
	var old unix.Rlimit
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old))
	none := unix.Rlimit{Cur: 0, Max: old.Max}
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &none, nil))
	err := Recheck(errLibrary)
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil))
	require.ErrorIs(t, err, ErrUnsure)
	require.ErrorIs(t, err, unix.EMFILE)
}

func TestOtherErrorsStayWhatTheyAre(t *testing.T) {
	require.NoError(t, Recheck(nil))
	for _, err := range []error{
		errors.New("something else (requires >= v5.5)"),
		fmt.Errorf("a newer thing %w (requires >= v5.16)", ebpf.ErrNotSupported),
		ebpf.ErrNotSupported,
	} {
		require.Equal(t, err, Recheck(err))
	}
}
