// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/probe"
)

// Errors that callers can tell apart with errors.Is, besides those of package loader.
var (
	// ErrInvalid is returned for the value of an option that does not exist, or that is not for this function.
	ErrInvalid = errors.New("invalid option")
	// ErrNoHash is returned when a legacy map that is needed is not pinned.
	ErrNoHash = errors.New("legacy map is missing")
	// ErrLayout is returned when a pinned legacy map has another layout. Nothing is read from it.
	ErrLayout = errors.New("legacy map has another layout")
	// ErrIncomplete is returned when not every hook is attached: live sockets would change unnoticed.
	ErrIncomplete = errors.New("hooks are missing")
	// ErrEngine is returned when the kernel cannot run the engine that was asked for.
	ErrEngine = errors.New("engine is not supported by this kernel")
	// ErrProcesses is returned when the process lacks CAP_SYS_PTRACE: it would not see the sockets of other processes.
	ErrProcesses = errors.New("descriptors of other processes cannot be read")
	// ErrUnresolved is returned when entries or tuples could not be moved. They are where they were, and the hooks still read them.
	ErrUnresolved = errors.New("not everything could be moved")
	// ErrDoesNotFit is returned when the legacy maps have no room for what sockets hold.
	ErrDoesNotFit = errors.New("does not fit into the legacy map")
)

// refused tells a kernel that lacks something from other errors of loading programs: want of memory or of
// descriptors, for example, comes as an error of the verifier, too, or as a feature that is not there.
func refused(err error) bool {
	err = probe.Recheck(err)
	for _, passing := range []error{unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.EINTR, unix.EPERM} {
		if errors.Is(err, passing) {
			return false
		}
	}
	verifier := new(ebpf.VerifierError)
	return errors.As(err, &verifier) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound)
}

func engineError(engine Engine, err error) error {
	if err = probe.Recheck(err); refused(err) {
		return fmt.Errorf("engine %s: %w: %w", engine, ErrEngine, err)
	}
	return fmt.Errorf("engine %s: %w", engine, err)
}
