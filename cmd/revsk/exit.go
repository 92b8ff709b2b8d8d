// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/agent"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// Exit codes, which are part of the interface.
const (
	exitFailed       = 1
	exitUsage        = 2
	exitPartly       = 3
	exitNotSupported = 4
)

// exitError is an error with its exit code. If err is nil, nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

func usageError(err error) error { return exitError{exitUsage, err} }

// asRoot is a hint to which [explain] adds the capabilities that the command needs.
const asRoot = "run as root, with "

// advice is what an operator can do about an error of the libraries, and the exit code for it. Of the entries
// that match, the first one is used.
var advice = []struct {
	err  error
	code int
	hint string
}{
	{loader.ErrPartlyDone, exitPartly, "run the command again"},
	{loader.ErrNotSupported, exitNotSupported, "revsk features says what is missing and which kernel has it"},
	{loader.ErrPermission, exitFailed, asRoot},
	{loader.ErrLoading, exitFailed, "run the command again when that has finished"},
	{loader.ErrNotLoaded, exitFailed, "run revsk load first, or name the place with --bpffs or --pins"},
	{loader.ErrLocked, exitFailed, "wait for the other revsk or agent to finish, or use --wait"},
	{loader.ErrLayout, exitFailed, "use the release that made it, or name other directories with --maps and --pins"},
	{loader.ErrFrozen, exitFailed, "once revsk list shows no socket, run revsk unload --purge and revsk load, which create it again"},
	{loader.ErrNoBPFFS, exitFailed, "mount one (mount -t bpf bpf /sys/fs/bpf), or name one with --bpffs"},
	{loader.ErrNoCgroup2, exitFailed, "mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or name a directory of one with --cgroup"},
	{loader.ErrNoSuchCgroup, exitFailed, "make it, or name another with --cgroup"},
	{loader.ErrForeignLink, exitFailed, "name the cgroup that it is attached to with --cgroup, or other pins with --pins, or remove the pin if nothing uses it"},
	{loader.ErrExclusive, exitFailed, "find it with bpftool cgroup tree, and detach it or use another --cgroup"},
	{loader.ErrOverrides, exitFailed, "load on its cgroup with --cgroup, or have it attached with BPF_F_ALLOW_MULTI"},
	{loader.ErrTakenBack, exitFailed, "run revsk load --takeover to take it over once more"},
	{loader.ErrHashIncomplete, exitFailed, "run revsk rollback first, and before that revsk load --takeover where the agent has taken hooks back"},
	{loader.ErrStale, exitFailed, "run the command again"},
	{loader.ErrInvalid, exitUsage, ""},
	{loader.ErrNotAPin, exitFailed, "move it away, or name other pins with --pins"},
	{loader.ErrNoProc, exitFailed, "mount it (mount -t proc proc /proc)"},
	{loader.ErrOtherDatapath, exitFailed, "use the --pins with which it was loaded, or unload it first"},
	{loader.ErrUnsafeDir, exitFailed, "have root own it and nobody else write to it, or name other pins with --pins"},
	{loader.ErrMapsReplaced, exitFailed, "pin it there again, or start the agent that owns the maps and let it pin its own"},
	{loader.ErrAgentRuns, exitFailed, "run revsk load --takeover to take over from it"},
	{loader.ErrForeignProgram, exitFailed, "restart the agent that owns it, or detach it if no socket needs it (bpftool cgroup tree shows it)"},
	{loader.ErrNothingToTakeOver, exitFailed, "run revsk load without --takeover"},
	{loader.ErrFeaturesUnknown, exitFailed, "look for bpf-lb-sock-hostns-only in the agent's configuration, and add --host-netns-only or --host-netns-only=false"},
	{loader.ErrTakenOver, exitFailed, "use --hand-back to give them back, or --force to detach them"},
	{loader.ErrNotTakenOver, exitFailed, "use revsk unload without --hand-back"},
	{loader.ErrUnsafeMode, exitFailed, "run revsk migrate for mode storage or mirror, or revsk rollback for mode legacy, which move what live sockets need; with --force those sockets lose their service"},

	{migrate.ErrUnresolved, exitPartly, "nothing is lost; see what is listed, and run the same command again later"},
	{migrate.ErrEngine, exitNotSupported, "use --engine auto; revsk features says what is missing and which kernel has it"},
	{migrate.ErrInvalid, exitUsage, ""},
	{migrate.ErrNoHash, exitFailed, "name the directory of the legacy maps with --maps; revsk load creates those that are missing"},
	{migrate.ErrLayout, exitFailed, "name the directory of the legacy maps with --maps, or use the release that made this one"},
	{migrate.ErrIncomplete, exitFailed, "run revsk load, which attaches them"},
	{migrate.ErrProcesses, exitFailed, asRoot},
	{migrate.ErrDoesNotFit, exitFailed, "wait until there are fewer sockets, or use --force and let some lose their service"},

	{lbmap.ErrNoMap, exitFailed, "run revsk load, which creates the maps, or name their directory with --maps"},
	{lbmap.ErrLayout, exitFailed, "use the release that made it, or name another directory with --maps"},
	{lbmap.ErrFrozen, exitFailed, "have the agent that owns the map make it anew; where there is none, run revsk unload, remove its pin, and run revsk load"},
	{lbmap.ErrFull, exitFailed, "delete services, or have the owner of the map make it larger"},
	{lbmap.ErrLocked, exitFailed, "wait for the other process that writes services to finish, or use a longer --wait"},
	{lbmap.ErrInUse, exitFailed, "see revsk service list, and choose another or let revsk choose"},
	{lbmap.ErrConflict, exitFailed, "a control plane writes its services itself: use revsk service where there is none"},
	{lbmap.ErrNotFound, exitFailed, "see revsk service list for what there is"},
	{lbmap.ErrSyntax, exitUsage, ""},
	{lbmap.ErrFamily, exitUsage, "use IPv4 backends for an IPv4 service and IPv6 backends for an IPv6 service"},
	{lbmap.ErrInvalid, exitUsage, ""},

	{inspect.ErrUnmigrated, exitPartly, "run revsk migrate first, which moves that onto the sockets, and then this command again"},
	{inspect.ErrNoProof, exitFailed, "use revsk mode dual; sockets that connect from then on can be told apart"},
	{inspect.ErrNoBackends, exitFailed, "have the control plane write its services first, or name the backends"},
	{inspect.ErrCannotDestroy, exitNotSupported, "revsk features says what is missing and which kernel has it"},
	{inspect.ErrNotSupported, exitNotSupported, "revsk features says what is missing and which kernel has it"},
	{inspect.ErrIncomplete, exitFailed, "try again when there are fewer sockets"},
	{inspect.ErrNoMap, exitFailed, "run revsk load first, or name the place with --bpffs or --pins"},

	{agent.ErrInvalid, exitUsage, ""},

	{os.ErrPermission, exitFailed, asRoot},
	{unix.EROFS, exitFailed, "mount it read-write (mount -o remount,rw /sys/fs/bpf), or name another with --bpffs"},
	{unix.EMFILE, exitFailed, "allow the process more open files (ulimit -n)"},
	{unix.ENFILE, exitFailed, "allow the machine more open files (fs.file-max)"},
	{unix.ENOMEM, exitFailed, "free memory; revsk load --legacy-entries creates a smaller hash"},
	{unix.ENOSPC, exitFailed, "free memory; revsk load --legacy-entries creates a smaller hash"},
	{probe.ErrUnsure, exitFailed, "run the command again"},
}

// explain returns what to print about an error of a command, in one line, and the exit code.
func explain(command string, err error) (text string, code int) {
	text, code = err.Error(), exitFailed
	for _, a := range advice {
		if errors.Is(err, a.err) {
			code = a.code
			if a.hint != "" {
				text += ": " + a.hint
			}
			if a.hint == asRoot {
				text += describeNeeds(command)
			}
			break
		}
	}
	var exit exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	return oneLine(text), code
}

// oneLine joins the lines that errors.Join makes.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; ")
}
