// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// ErrUnsure is returned when asking the kernel for a feature has failed, so that there is no answer.
var ErrUnsure = errors.New("the kernel could not be asked what it can do")

var requires = regexp.MustCompile(`^(.*?) not supported \(requires >= v(\d+)\.(\d+)`)

// Recheck returns the error of a call of the BPF library, or, where that only seems to say that the kernel lacks a
// feature, one wrapping [ErrUnsure] and the reason, if that lasts. For most features the library takes every failure
// of its own calls for a no, also one for want of memory or descriptors, and keeps the answer until the process
// ends; and where it cannot open the kernel's types, it says that there are none. So Recheck tries itself what every
// supported kernel has.
func Recheck(err error) error {
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	if before, _, noTypes := strings.Cut(err.Error(), "no BTF found"); noTypes {
		before = strings.TrimSuffix(before, "load kernel spec: ")
		f, cause := os.Open("/sys/kernel/btf/vmlinux")
		switch {
		case errors.Is(cause, os.ErrNotExist):
			return err
		case cause != nil:
			return fmt.Errorf("%w: %sreading the kernel's types: %w", ErrUnsure, before, cause)
		}
		return errors.Join(fmt.Errorf("%w: %sreading the kernel's types", ErrUnsure, before), f.Close())
	}
	m := requires.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	major, _ := strconv.Atoi(m[2])
	minor, _ := strconv.Atoi(m[3])
	if major > 5 || major == 5 && minor > 10 {
		return err
	}
	switch cause := hasBasics(); {
	case cause == nil:
		return fmt.Errorf("%w: %s", ErrUnsure, m[1])
	case errors.Is(cause, unix.EINVAL):
		return err
	default:
		return fmt.Errorf("%w: %s: %w", ErrUnsure, m[1], cause)
	}
}

// hasBasics makes a map and a program of kinds that Linux 5.10 has, and older kernels do not. It does without the
// library, which would rely on the answers that it keeps.
func hasBasics() error {
	const innerMap = 1 << 12 // BPF_F_INNER_MAP
	array := struct{ kind, key, value, entries, flags uint32 }{uint32(ebpf.Array), 4, 4, 1, innerMap}
	if err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&array), unsafe.Sizeof(array)); err != nil {
		return err
	}
	prog := struct {
		kind, length  uint32
		code, license uintptr
	}{uint32(ebpf.CGroupSKB), uint32(len(nothing) / asm.InstructionSize), uintptr(unsafe.Pointer(&nothing)), uintptr(unsafe.Pointer(&license))}
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&prog), unsafe.Sizeof(prog))
}

// A program that returns 0. These are global because their addresses must not change.
var (
	nothing = [2 * asm.InstructionSize]byte{0: 0xb7, asm.InstructionSize: 0x95}
	license = [4]byte{'G', 'P', 'L'}
)

// bpf calls the kernel, and closes what it opens.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) error {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}
