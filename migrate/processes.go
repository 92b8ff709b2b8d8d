// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// firstPIDNamespace is the inode number of the kernel's first pid namespace (PROC_PID_INIT_INO).
const firstPIDNamespace = 0xEFFFFFFC

// checkProcesses makes sure that other processes can be looked into: a socket of theirs that is in no
// protocol's table would pass for one that does not exist. Returns an error wrapping [ErrProcesses].
//
// That all of them are below this process's pid namespace cannot be known, and is warned about.
func checkProcesses(log *slog.Logger) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("reading the capabilities of this process: %w", err)
	}
	if sets[unix.CAP_SYS_PTRACE/32].Effective&(1<<(unix.CAP_SYS_PTRACE%32)) == 0 {
		return fmt.Errorf("%w: no CAP_SYS_PTRACE", ErrProcesses)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/pid", &st); err != nil {
		return fmt.Errorf("looking for the pid namespace: %w", err)
	}
	if st.Ino != firstPIDNamespace {
		log.Warn("processes outside this pid namespace are not seen: UDP-Lite and disconnected sockets of theirs count as leaked")
	}
	return nil
}
