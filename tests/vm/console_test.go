// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestScanConsoleFindsAlarms(t *testing.T) {
	for _, line := range []string{
		"[    9.2] WARNING: CPU: 1 PID: 77 at net/core/sock.c:1523 sk_clone_lock+0x1/0x2",
		"[    9.2] WARNING: possible circular locking dependency detected",
		"[    9.2] WARNING: suspicious RCU usage",
		"[    9.2] BUG: kernel NULL pointer dereference, address: 0000000000000008",
		"[    9.2] BUG: KASAN: slab-use-after-free in foo",
		"[    9.2] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
		"[    9.2] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
		"[    9.2] rcu: INFO: rcu_sched self-detected stall on CPU",
		"[    9.2] Oops: 0002 [#1] PREEMPT SMP NOPTI",
		"[    9.2] Call Trace:",
		"[    9.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200",
		"[    9.2] general protection fault, probably for non-canonical address",
		"[    9.2] INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
		"[    9.2] unregister_netdevice: waiting for lo to become free. Usage count = 2",
		"[    9.2] Out of memory: Killed process 80 (suite.test)",
		"[    9.2] UBSAN: array-index-out-of-bounds in a.c",
	} {
		found, err := scanConsole(strings.NewReader("[    1.0] fine\r\n" + line + "\r\nwhat follows\r\n"))
		require.NoError(t, err)
		require.Equal(t, []string{line + "\nwhat follows"}, found)
	}
}

func TestScanConsoleIsQuietAboutAHealthyKernel(t *testing.T) {
	found, err := scanConsole(strings.NewReader(strings.Join([]string{
		"[    0.0] Linux version 6.1.0-56-cloud-amd64",
		"[    0.0] Command line: console=ttyS0 oops=panic panic=-1 rcupdate.rcu_cpu_stall_timeout=60",
		"[    0.0] Kernel command line: console=ttyS0 rcupdate.rcu_cpu_stall_timeout=60",
		"[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
		"[    0.1] MDS CPU bug present and SMT on",
		"[    2.1] Unstable clock detected, switching default tracing clock to \"global\"",
		"[    4.4] reboot: Power down",
	}, "\n")))
	require.NoError(t, err)
	require.Empty(t, found)
}

func TestScanConsoleTakesAWarningAndItsTraceAsOne(t *testing.T) {
	warning := "WARNING: here\n" + strings.Repeat("register\n", 10) + "Call Trace:\n" + strings.Repeat("frame\n", 60)
	found, err := scanConsole(strings.NewReader(warning + "BUG: there\n"))
	require.NoError(t, err)
	require.Len(t, found, 2)
	require.Len(t, strings.Split(found[0], "\n"), alarmLines)
	require.Equal(t, "BUG: there", found[1])
}

func TestRanStaleBreakpoint(t *testing.T) {
	const (
		oops = "[   15.417666] Oops: int3: 0000 [#1] SMP NOPTI\r\n"
		old  = "[    3.093098] int3: 0000 [#1] PREEMPT SMP NOPTI\r\n"
		rip  = "[   15.418938] RIP: 0010:inet6_init_ehash_secret+0xa/0x90\r\n"
		gone = "[   15.419454] Code: c7 c7 40 6e af 9c 0f 1f 40 d6 0f 1f 44 00 00 66 <90> 66 90 c3 cc cc\r\n"
		real = "[   15.419454] Code: c7 c7 40 6e af 9c 0f 1f 40 d6 0f 1f 44 00 00 cc <90> 66 90 c3 cc cc\r\n"
	)
	require.True(t, ranStaleBreakpoint("[    1.0] fine\r\n"+oops+rip+gone+"[   15.4] Call Trace:\r\n"))
	require.True(t, ranStaleBreakpoint(old+rip+gone))
	require.False(t, ranStaleBreakpoint(oops+rip+real), "there is one: the kernel's fault")
	require.False(t, ranStaleBreakpoint(oops+rip+real+rip+gone), "another place")
	require.False(t, ranStaleBreakpoint("[   15.4] Oops: invalid opcode: 0000 [#1] SMP NOPTI\r\n"+rip+gone))
	require.False(t, ranStaleBreakpoint(gone))
	require.False(t, ranStaleBreakpoint(oops))
}

func TestNewTaint(t *testing.T) {
	require.Empty(t, newTaint(0, 0))
	require.Empty(t, newTaint(1<<9, 1<<9), "tainted before")
	require.Empty(t, newTaint(0, 1<<12|1<<13), "modules from elsewhere")
	require.Equal(t, []string{"oops", "warning"}, newTaint(1, 1|1<<7|1<<9))
}
