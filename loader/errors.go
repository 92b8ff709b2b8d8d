// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/revsk/revsk/internal/cgroup2"
)

// Errors that callers can tell apart with errors.Is. What wraps them says where; the command line adds what an
// operator can do about it.
var (
	// ErrNotLoaded is returned when there is no datapath behind the pins.
	ErrNotLoaded = errors.New("not loaded")
	// ErrLoading is returned when there is a part of a datapath only, on which another process works. It wraps
	// [ErrNotLoaded].
	ErrLoading = fmt.Errorf("%w completely: another process is loading or unloading it", ErrNotLoaded)
	// ErrLocked is returned when another process is changing the same datapath.
	ErrLocked = errors.New("locked by another process")
	// ErrLayout is returned when a pinned map has another layout than the programs need. It is never recreated:
	// with a storage map, what live sockets remember would be gone.
	ErrLayout = errors.New("pinned map has another layout")
	// ErrNoBPFFS is returned when the directory for the pins is not on a BPF file system.
	ErrNoBPFFS = errors.New("not a BPF file system")
	// ErrNoCgroup2 is returned when a path is not a directory of the cgroup2 hierarchy, or when there is no such
	// hierarchy.
	ErrNoCgroup2 = cgroup2.ErrNone
	// ErrNoSuchCgroup is returned when the cgroup does not exist.
	ErrNoSuchCgroup = errors.New("no such cgroup")
	// ErrPermission is returned when the process lacks a capability.
	ErrPermission = errors.New("missing capability")
	// ErrFrozen is returned when another process has frozen a map with BPF_MAP_FREEZE: nobody can write to it any more.
	ErrFrozen = errors.New("map is frozen")
	// ErrNotSupported is returned when the kernel lacks something that is needed.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrForeignLink is returned when a pinned link is not what its name says.
	ErrForeignLink = errors.New("pinned link is not ours")
	// ErrExclusive is returned when a program without BPF_F_ALLOW_MULTI is attached to the cgroup.
	ErrExclusive = errors.New("another program is attached exclusively")
	// ErrOverrides is returned when a program on a cgroup above would no longer run for the sockets of this one.
	ErrOverrides = errors.New("a program of a cgroup above would be switched off")
	// ErrAgentRuns is returned when another agent's program is on the hook, and would run beside ours.
	ErrAgentRuns = errors.New("another agent's program is attached")
	// ErrForeignProgram is returned when an attached program cannot be taken over.
	ErrForeignProgram = errors.New("program cannot be taken over")
	// ErrNothingToTakeOver is returned when a takeover was asked for, but there is no other agent.
	ErrNothingToTakeOver = errors.New("nothing to take over")
	// ErrFeaturesUnknown is returned when applications would notice how another agent's programs are configured,
	// and this could not be found out ([Options.Said]).
	ErrFeaturesUnknown = errors.New("cannot find out how the agent's programs are configured")
	// ErrTakenOver is returned when another agent's hooks were taken over, and have to be handed back first.
	ErrTakenOver = errors.New("hooks were taken over from another agent")
	// ErrNotTakenOver is returned when there is nothing to hand back.
	ErrNotTakenOver = errors.New("nothing was taken over")
	// ErrTakenBack is returned when the other agent has put its own program back on a hook that was taken over.
	ErrTakenBack = errors.New("hook was taken back by another agent")
	// ErrHashIncomplete is returned when the hash lacks what live sockets hold, and programs would come back
	// that read the hash only.
	ErrHashIncomplete = errors.New("hash lacks what live sockets hold")
	// ErrStale is returned when the pins are no longer those of this Datapath: it was unloaded or loaded anew
	// meanwhile.
	ErrStale = errors.New("datapath was replaced meanwhile")
	// ErrClosed is returned by methods of a [Datapath] that is nil or closed.
	ErrClosed = errors.New("datapath is closed")
	// ErrInvalid is returned for an option, or a combination of options, that has no meaning.
	ErrInvalid = errors.New("invalid option")
	// ErrNotAPin is returned when something else than a pin is at the path of a pin, such as a directory.
	ErrNotAPin = errors.New("not a pinned object")
	// ErrNoProc is returned when /proc cannot be read. Without it BPF objects cannot be opened.
	ErrNoProc = errors.New("/proc cannot be read")
	// ErrUnsafeDir is returned when another user could have made, or can write to, a directory of the pins.
	ErrUnsafeDir = errors.New("directory is not safe")
	// ErrOtherDatapath is returned when another datapath runs on the same sockets: each would see the addresses
	// that the other has translated.
	ErrOtherDatapath = errors.New("another datapath runs on the same sockets")
	// ErrMapsReplaced is returned when a pin of the load balancer's maps is missing, and the attached programs
	// use a map with entries in its place.
	ErrMapsReplaced = errors.New("pin of a map in use is missing")
	// ErrPartlyDone is returned when a call has failed after a step that it cannot undo. The next call continues.
	ErrPartlyDone = errors.New("partly done")
	// ErrUnsafeMode is returned when the hooks would no longer read what live sockets need in the mode asked for.
	ErrUnsafeMode = errors.New("live sockets would lose their service")
)
