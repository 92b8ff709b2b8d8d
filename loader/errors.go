// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/revsk/revsk/internal/cgroup2"
)

// Errors that callers can tell apart with errors.Is. What wraps them says where; what an operator can do
// about it, the command line adds.
var (
	// ErrNotLoaded: there is no datapath behind these pins.
	ErrNotLoaded = errors.New("not loaded")
	// ErrLoading: there is only a part of a datapath, on which another process is at work. It wraps
	// [ErrNotLoaded].
	ErrLoading = fmt.Errorf("%w completely: another process is loading or unloading it", ErrNotLoaded)
	// ErrLocked: another process is changing the same datapath.
	ErrLocked = errors.New("locked by another process")
	// ErrLayout: a pinned map has another layout than the programs need. It is never recreated:
	// with a storage map, what live sockets remember would be gone.
	ErrLayout = errors.New("pinned map has another layout")
	// ErrNoBPFFS: the directory for the pins is not on a BPF file system.
	ErrNoBPFFS = errors.New("not a BPF file system")
	// ErrNoCgroup2: the path is not a directory of the cgroup2 hierarchy, or there is none.
	ErrNoCgroup2 = cgroup2.ErrNone
	// ErrNoSuchCgroup: the cgroup does not exist.
	ErrNoSuchCgroup = errors.New("no such cgroup")
	// ErrPermission: the process lacks a capability.
	ErrPermission = errors.New("missing capability")
	// ErrNotSupported: the kernel lacks something that is needed.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrForeignLink: a pinned link is not what its name says.
	ErrForeignLink = errors.New("pinned link is not ours")
	// ErrExclusive: a program without BPF_F_ALLOW_MULTI sits on the cgroup.
	ErrExclusive = errors.New("another program is attached exclusively")
	// ErrOverrides: a program on a cgroup above would no longer run for the sockets of this one.
	ErrOverrides = errors.New("a program of a cgroup above would be switched off")
	// ErrAgentRuns: another agent's program is on the hook, and would run beside ours.
	ErrAgentRuns = errors.New("another agent's program is attached")
	// ErrForeignProgram: a program that is attached cannot be taken over.
	ErrForeignProgram = errors.New("program cannot be taken over")
	// ErrNothingToTakeOver: a takeover was asked for, but there is no other agent.
	ErrNothingToTakeOver = errors.New("nothing to take over")
	// ErrFeaturesUnknown: applications would notice how another agent's programs are configured, and that
	// could not be found out ([Options.Said]).
	ErrFeaturesUnknown = errors.New("cannot find out how the agent's programs are configured")
	// ErrTakenOver: another agent's hooks were taken over, and wait to be handed back.
	ErrTakenOver = errors.New("hooks were taken over from another agent")
	// ErrNotTakenOver: there is nothing to hand back.
	ErrNotTakenOver = errors.New("nothing was taken over")
	// ErrTakenBack: the other agent has put a program of its own back on a hook that was taken over.
	ErrTakenBack = errors.New("hook was taken back by another agent")
	// ErrHashIncomplete: live sockets hold what the hash lacks, and programs would come back that know the
	// hash only.
	ErrHashIncomplete = errors.New("hash lacks what live sockets hold")
	// ErrStale: the pins are not those of this Datapath any more: it was unloaded, or loaded anew, meanwhile.
	ErrStale = errors.New("datapath was replaced meanwhile")
	// ErrClosed: the Datapath is nil or closed.
	ErrClosed = errors.New("datapath is closed")
	// ErrInvalid: an option, or a combination of them, has no meaning.
	ErrInvalid = errors.New("invalid option")
	// ErrNotAPin: what exists at the path of a pin is a directory, for example.
	ErrNotAPin = errors.New("not a pinned object")
	// ErrNoProc: /proc cannot be read, without which BPF objects cannot be opened.
	ErrNoProc = errors.New("/proc cannot be read")
	// ErrUnsafeDir: somebody else could have made, or can write to, a directory of the pins.
	ErrUnsafeDir = errors.New("directory is not safe")
	// ErrOtherDatapath: another datapath runs on the same sockets, and each would see the addresses that the
	// other has translated.
	ErrOtherDatapath = errors.New("another datapath runs on the same sockets")
	// ErrMapsReplaced: a pin of the load balancer's maps is missing, and the attached programs use a map with
	// entries in its place.
	ErrMapsReplaced = errors.New("pin of a map in use is missing")
	// ErrPartlyDone: a call has failed after the point up to which it takes back what it did.
	ErrPartlyDone = errors.New("partly done")
	// ErrUnsafeMode: the mode asked for does not read state that live sockets have.
	ErrUnsafeMode = errors.New("mode would forget live sockets")
)
