// SPDX-License-Identifier: Apache-2.0

// Init is process 1 of the machines that tests/vm boots. It sets the machine up as the plan in its
// initramfs says, runs the plan's steps, answers on the second serial port, and powers off.
package main

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() == 1 {
		reap()
		return
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

// reap runs the real work in a child, so that process 1 has nothing to do but what is its duty: to
// wait for orphans. Tests that wait for a daemon to be gone need that.
func reap() {
	worker := exec.Command("/init")
	worker.Stdin, worker.Stdout, worker.Stderr = os.Stdin, os.Stdout, os.Stderr // no /dev/null yet
	if err := worker.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	} else {
		for {
			pid, err := unix.Wait4(-1, nil, 0, nil)
			if pid == worker.Process.Pid || (err != nil && err != unix.EINTR) {
				break
			}
		}
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "init: powering off:", err)
	}
}
