// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/oldkernel"
	"github.com/revsk/revsk/internal/probe"
)

// rejection is the error of a call that a hook rejects with want: kernels without bpf_set_retval
// (before 5.18) have one error for all.
func rejection(t *testing.T, want unix.Errno) unix.Errno {
	t.Helper()
	if !haveHelper(t, ebpf.CGroupSockAddr, asm.FnSetRetval) {
		return unix.EPERM
	}
	return want
}

func haveHelper(t *testing.T, program ebpf.ProgramType, helper asm.BuiltinFunc) bool {
	t.Helper()
	have, err := probe.Helper(program, helper)
	require.NoError(t, err)
	return have
}

// needFamily skips a test with sockets of a family that this machine does not have.
func needFamily(t *testing.T, f family) {
	t.Helper()
	if f.domain == unix.AF_INET6 && !haveIPv6 {
		oldkernel.SkipWithoutIPv6(t)
	}
}

// needDestroy skips a test that aborts sockets where that is not configured.
func needDestroy(t *testing.T) {
	t.Helper()
	if !haveDestroy(t) {
		oldkernel.SkipWithout(t, "SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY, and the module udp_diag)", false)
	}
}

// haveDestroy tells whether sockets can be aborted.
func haveDestroy(t *testing.T) bool {
	t.Helper()
	err := tryDestroy()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) { // not configured; no module
		return false
	}
	require.NoError(t, err)
	return true
}

// tryDestroy aborts a socket.
var tryDestroy = sync.OnceValue(func() error {
	x, err := newSocket(ipv4, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer x.close()
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if err := unix.Bind(x.fd, x.sockaddr(at)); err != nil {
		return err
	}
	name, err := unix.Getsockname(x.fd)
	if err != nil {
		return err
	}
	at, err = x.address(name)
	if err != nil {
		return err
	}
	return destroySocket(ipv4, unix.IPPROTO_UDP, at, netip.AddrPortFrom(ipv4.any(), 0), anyCookie)
})

// haveUDPLite tells whether the kernel has UDP-Lite. It was removed from Linux 7.1.
func haveUDPLite(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDPLITE)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Log("this kernel has no UDP-Lite")
		return false
	}
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	return true
}

// uptime is CLOCK_MONOTONIC.
func uptime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return time.Duration(ts.Nano())
}

// setSysctl sets a setting of the sandbox's namespace, to which it belongs alone.
func setSysctl(t *testing.T, path, value string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(value), 0))
}
