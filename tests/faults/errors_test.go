// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// errnos are the errors that each call can end with although what it asks for is right.
var errnos = map[string][]unix.Errno{
	"bpf MAP_CREATE":         {unix.ENOMEM, unix.EPERM, unix.EMFILE},
	"bpf MAP_LOOKUP_ELEM":    {unix.ENOMEM, unix.EPERM},
	"bpf MAP_UPDATE_ELEM":    {unix.ENOMEM, unix.EBUSY, unix.E2BIG, unix.EPERM},
	"bpf MAP_DELETE_ELEM":    {unix.ENOMEM, unix.EBUSY, unix.EPERM},
	"bpf MAP_GET_NEXT_KEY":   {unix.ENOMEM, unix.EPERM},
	"bpf PROG_LOAD":          {unix.ENOMEM, unix.EAGAIN, unix.EPERM, unix.EMFILE},
	"bpf OBJ_PIN":            {unix.ENOMEM, unix.ENOSPC, unix.EEXIST, unix.EPERM, unix.EACCES},
	"bpf OBJ_GET":            {unix.ENOMEM, unix.EACCES, unix.EMFILE, unix.ENFILE, unix.ENOENT},
	"bpf PROG_ATTACH":        {unix.ENOMEM, unix.EPERM},
	"bpf PROG_DETACH":        {unix.ENOMEM, unix.EPERM},
	"bpf PROG_TEST_RUN":      {unix.ENOMEM, unix.EINTR},
	"bpf PROG_GET_FD_BY_ID":  {unix.EMFILE, unix.EPERM, unix.ENOENT},
	"bpf MAP_GET_FD_BY_ID":   {unix.EMFILE, unix.EPERM, unix.ENOENT},
	"bpf BTF_GET_FD_BY_ID":   {unix.EMFILE, unix.EPERM, unix.ENOENT},
	"bpf LINK_GET_FD_BY_ID":  {unix.EMFILE, unix.EPERM, unix.ENOENT},
	"bpf OBJ_GET_INFO_BY_FD": {unix.ENOMEM, unix.EPERM},
	"bpf PROG_QUERY":         {unix.ENOMEM, unix.EPERM},
	"bpf BTF_LOAD":           {unix.ENOMEM, unix.EPERM, unix.EMFILE},
	"bpf MAP_FREEZE":         {unix.EBUSY},
	"bpf MAP_LOOKUP_BATCH":   {unix.ENOMEM, unix.EINTR, unix.EPERM},
	"bpf MAP_UPDATE_BATCH":   {unix.ENOMEM, unix.EINTR, unix.EPERM},
	"bpf MAP_DELETE_BATCH":   {unix.ENOMEM, unix.EINTR, unix.EPERM},
	"bpf LINK_CREATE":        {unix.ENOMEM, unix.EPERM, unix.EMFILE, unix.E2BIG},
	"bpf LINK_UPDATE":        {unix.ENOMEM, unix.EPERM},
	"bpf LINK_DETACH":        {unix.ENOMEM, unix.EPERM},
	"bpf LINK_GET_NEXT_ID":   {unix.EPERM},
	"bpf PROG_GET_NEXT_ID":   {unix.EPERM},
	"bpf MAP_GET_NEXT_ID":    {unix.EPERM},
	"bpf ITER_CREATE":        {unix.ENOMEM, unix.EMFILE},
	"bpf PROG_BIND_MAP":      {unix.ENOMEM},

	"openat":         {unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.EINTR},
	"fstatat":        {unix.ENOMEM, unix.EACCES},
	"readlinkat":     {unix.ENOMEM, unix.EACCES},
	"getdents":       {unix.ENOMEM},
	"read":           {unix.ENOMEM, unix.EINTR, unix.EIO},
	"dup":            {unix.EMFILE},
	"statfs":         {unix.ENOMEM, unix.EACCES},
	"fstatfs":        {unix.ENOMEM},
	"mkdirat":        {unix.ENOMEM, unix.ENOSPC, unix.EROFS, unix.EACCES},
	"renameat":       {unix.ENOMEM, unix.EBUSY, unix.EROFS},
	"unlinkat":       {unix.ENOMEM, unix.EBUSY, unix.EROFS, unix.EPERM},
	"flock":          {unix.EINTR, unix.ENOLCK},
	"socket netlink": {unix.EMFILE, unix.ENOMEM, unix.EPROTONOSUPPORT},
	"sendto":         {unix.ENOMEM, unix.ENOBUFS},
	"recvfrom":       {unix.ENOBUFS, unix.EINTR, unix.ENOMEM},
	"setsockopt":     {unix.ENOMEM, unix.EPERM},
	"setns":          {unix.EPERM, unix.ENOMEM},
	"pidfd_open":     {unix.EMFILE, unix.ESRCH},
	"pidfd_getfd":    {unix.EMFILE, unix.EPERM, unix.EBADF},
}

// errnoClass is what an error says to code that does not know the call.
type errnoClass int

const (
	otherError errnoClass = iota
	isDenied
	isScarce
	isBusy
)

func classOf(e unix.Errno) errnoClass {
	switch e {
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return isDenied
	case unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.E2BIG, unix.ENOBUFS, unix.ENOLCK:
		return isScarce
	case unix.EINTR, unix.EAGAIN, unix.EBUSY:
		return isBusy
	}
	return otherError
}

// changing are the calls by which a command changes something that is there after it.
var changing = []string{
	"bpf MAP_CREATE", "bpf MAP_UPDATE_ELEM", "bpf MAP_DELETE_ELEM", "bpf PROG_LOAD", "bpf OBJ_PIN", "bpf PROG_ATTACH",
	"bpf PROG_DETACH", "bpf MAP_UPDATE_BATCH", "bpf MAP_DELETE_BATCH", "bpf LINK_CREATE", "bpf LINK_UPDATE",
	"bpf LINK_DETACH", "bpf ITER_CREATE", "bpf MAP_FREEZE", "mkdirat", "renameat", "unlinkat", "flock", "sendto",
	"setsockopt", "setns",
}

func changes(kind string) bool { return slices.Contains(changing, kind) }

// concerns tells whether a call has to do with what the command does. Others are the Go runtime's, which looks at
// the machine before main: no code of ours sees what becomes of them.
func (c call) concerns() bool {
	switch c.kind {
	case "read":
		// Pipes and timers of the runtime, and what is opened and read at its start.
		return strings.HasPrefix(c.path, "/proc") || strings.Contains(c.path, "bpf") && !strings.Contains(c.path, "[event")
	case "openat", "fstatat", "readlinkat":
		return !strings.HasPrefix(c.path, "/sys/kernel/mm/") && !strings.HasPrefix(c.path, "/etc/")
	}
	_, known := errnos[c.kind]
	return known
}

// notRight are words of a message that send an operator into a wrong direction when nothing but one call has failed.
var notRight = []string{
	"another layout", "unpin it", "use the release that made it", "not loaded", "run revsk load first", "mount one",
	"not supported", "requires ", "needs Linux", "not taken over", "nothing was taken over", "map is missing", "run revsk features", "another program",
	"wait for the other", "no such service",
}

// misleading says what is wrong with the message of a command of which one call has failed with the error.
func misleading(stderr string, e unix.Errno) string {
	denied := e == unix.EPERM || e == unix.EACCES
	missing := e == unix.ENOENT || e == unix.ESRCH || e == unix.EBADF
	for _, words := range notRight {
		if strings.Contains(stderr, words) && !missing && !(denied && words == "not supported") {
			return "it says " + words
		}
	}
	if strings.Contains(stderr, "run as root") && !denied {
		return "it says to run as root"
	}
	if strings.Contains(stderr, "panic") || strings.Contains(stderr, "goroutine ") {
		return "it has crashed"
	}
	return ""
}
