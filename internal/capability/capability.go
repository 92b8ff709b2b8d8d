// SPDX-License-Identifier: Apache-2.0

// Package capability reads which capabilities the calling thread has, and gives capabilities up.
package capability

import (
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities.
type Set [2]unix.CapUserData

// Held returns the capabilities of the calling thread.
func Held() (Set, error) {
	var s Set
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &s[0]); err != nil {
		return Set{}, fmt.Errorf("reading the capabilities of this process: %w", err)
	}
	return s, nil
}

// Has tells whether a capability, such as [unix.CAP_BPF], is effective.
func (s Set) Has(capability int) bool {
	return s[capability/32].Effective&(1<<(capability%32)) != 0
}

// names are those of the capabilities that this program has a use for.
var names = map[int]string{
	unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_BPF: "CAP_BPF", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_PERFMON: "CAP_PERFMON",
	unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
}

// Missing names those of some capabilities that the calling thread does not have; "" if it has all, or that is not known.
func Missing(capabilities ...int) string {
	held, err := Held()
	if err != nil {
		return ""
	}
	var missing []string
	for _, c := range capabilities {
		if !held.Has(c) {
			missing = append(missing, names[c])
		}
	}
	return strings.Join(missing, ", ")
}

// Keep takes all other capabilities from the process, all its threads, for good: programs that it starts get none
// of them back. It cannot do so in a program that uses cgo, such as one under the race detector.
func Keep(bits ...uintptr) error {
	s, err := Held()
	if err != nil {
		return err
	}
	var keep [2]uint32
	for _, bit := range bits {
		keep[bit/32] |= 1 << (bit % 32)
	}
	for i := range s {
		s[i].Permitted &= keep[i]
		s[i].Effective = s[i].Permitted
		s[i].Inheritable &= keep[i]
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&s[0])), 0)
	}
	if errno != 0 && errno != unix.ENOTSUP { // cgo
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	return nil
}
