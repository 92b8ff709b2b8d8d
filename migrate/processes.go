// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
	"github.com/revsk/revsk/internal/proc"
)

// checkProcesses makes sure that other processes can be looked into: a socket of theirs that is in no
// protocol's table would pass for one that does not exist. Returns an error wrapping [ErrProcesses].
//
// That all of them are below this process's pid namespace cannot be known, and is warned about.
func checkProcesses(log *slog.Logger) error {
	held, err := capability.Held()
	if err != nil {
		return err
	}
	if !held.Has(unix.CAP_SYS_PTRACE) {
		return fmt.Errorf("%w: no CAP_SYS_PTRACE", ErrProcesses)
	}
	first, err := proc.InFirstPIDNamespace()
	if err != nil {
		return err
	}
	if !first {
		log.Warn("processes outside this pid namespace are not seen: UDP-Lite and disconnected sockets of theirs count as leaked")
	}
	return nil
}
