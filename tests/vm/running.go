// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/revsk/revsk/tests/vm/plan"
	"golang.org/x/sys/unix"
)

// runningName is the kernel that this machine runs: the same steps, without QEMU.
const runningName = "running"

// runHere runs the steps on this machine.
func runHere(ctx context.Context, c *collector) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	// The namespace is this thread's and goes with it: it is never unlocked.
	runtime.LockOSThread()
	if err := privateBPFFS(); err != nil {
		return err
	}
	kmsg, err := openKernelLog()
	if err != nil {
		c.log("not watching this kernel's messages: %v", err)
	} else {
		defer unix.Close(kmsg)
	}
	var failed error
	emit := func(e plan.Event) {
		if err := c.event(ctx, e); err != nil && failed == nil {
			failed = err
		}
	}
	emit(plan.Event{Boot: &plan.Boot{Release: unix.ByteSliceToString(name.Release[:])}})
	for _, step := range c.steps {
		step.Run(ctx, emit, nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	emit(plan.Event{Done: &plan.Done{}})
	if failed != nil || kmsg < 0 {
		return failed
	}
	alarms, err := scanConsole(strings.NewReader(readKernelLog(kmsg)))
	for _, alarm := range alarms {
		c.problem("kernel alarm", "", alarm)
	}
	return err
}

// privateBPFFS mounts bpffs where revsk expects it, if it is not there, in a mount namespace that this
// thread shares only with what it starts.
func privateBPFFS() error {
	const dir = "/sys/fs/bpf"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mounting bpffs on %s: %w", dir, err)
	}
	return nil
}

// openKernelLog opens the kernel's messages at their end.
func openKernelLog() (int, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/kmsg: %w", err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seeking in /dev/kmsg: %w", err)
	}
	return fd, nil
}

// readKernelLog reads the messages since. A record is "priority,sequence,time,flags;text".
func readKernelLog(fd int) string {
	var text strings.Builder
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EPIPE): // overwritten meanwhile; the next read goes on behind
		case err != nil || n <= 0:
			return text.String()
		default:
			_, message, _ := strings.Cut(string(record[:n]), ";")
			text.WriteString(message)
		}
	}
}
