// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/revsk/revsk/internal/bpfiter"
	"github.com/revsk/revsk/internal/probe"
)

// Engine is a way to come to the sockets of the machine.
type Engine string

const (
	// EngineAuto is EngineIter where the kernel can run it, else EnginePidfd.
	EngineAuto Engine = "auto"
	// EngineIter visits sockets in the kernel: by BPF iterators over the sockets of each network
	// namespace, and by descriptor those that are in file tables only. Needs Linux 6.5, whose
	// iterators hold the lock of the socket that they visit; a plan, which only reads, needs 5.17.
	EngineIter Engine = "iter"
	// EnginePidfd takes every socket of every process by its file descriptor, with pidfd_getfd.
	// Works on every kernel since 5.10, slower. It cannot reach sockets that are in no file table
	// (in flight in a message, for example); their entries stay, as unknown.
	EnginePidfd Engine = "pidfd"
)

// ParseEngine reads the name of an engine. Returns an error wrapping [ErrInvalid].
func ParseEngine(s string) (Engine, error) {
	switch e := Engine(s); e {
	case EngineAuto, EngineIter, EnginePidfd:
		return e, nil
	}
	return "", fmt.Errorf("%w: engine %q: use auto, iter or pidfd", ErrInvalid, s)
}

// lockingIterators tells whether iter/udp holds the lock of the socket that it is at. There is no other
// sign of it than the function that came in the same release because of it.
func lockingIterators() (bool, error) {
	kernel, err := bpfiter.Types.Kernel()
	err = probe.Recheck(err)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the kernel's types: %w", err)
	}
	var f *btf.Func
	return kernel.TypeByName("bpf_sock_destroy", &f) == nil, nil
}

// choose settles on an engine. What only reads does not need the lock. Returns an error wrapping [ErrInvalid]
// or [ErrEngine].
func (e Engine) choose(dryRun bool) (Engine, error) {
	if e == "" {
		e = EngineAuto
	}
	if _, err := ParseEngine(string(e)); err != nil {
		return "", err
	}
	if e == EnginePidfd {
		return e, nil
	}
	able := dryRun
	if !able {
		var err error
		if able, err = lockingIterators(); err != nil {
			return "", err
		}
	}
	switch {
	case able:
		return EngineIter, nil
	case e == EngineIter:
		return "", fmt.Errorf("engine iter: %w: its iterators do not lock the sockets (since Linux 6.5)", ErrEngine)
	}
	return EnginePidfd, nil
}
