// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// checkPin makes sure that a path can be that of a pinned object. Returns an error wrapping
// [os.ErrNotExist] if nothing exists at the path, or [ErrNotAPin].
func checkPin(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w: it is %s", path, ErrNotAPin, kindOfFile(info.Mode()))
	}
	return nil
}

func kindOfFile(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&os.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "a special file"
}

// openPin opens what is pinned at a path; where the file system is read-only, for reading, which the kernel
// does not do with links. Its error wraps [os.ErrNotExist] only if nothing exists at that path: what opening
// fails with can have other reasons to say so.
func openPin[T any](path string, open func(string, *ebpf.LoadPinOptions) (T, error)) (T, error) {
	var none T
	if err := checkPin(path); err != nil {
		return none, err
	}
	opened, err := open(path, nil)
	if errors.Is(err, unix.EROFS) {
		if read, readErr := open(path, &ebpf.LoadPinOptions{ReadOnly: true}); readErr == nil {
			return read, nil
		}
	}
	if err != nil {
		return none, describe(fmt.Errorf("opening %s: %w", path, present(err)))
	}
	return opened, nil
}

func openPinnedMap(path string) (*ebpf.Map, error) { return openPin(path, ebpf.LoadPinnedMap) }
func openPinnedProgram(path string) (*ebpf.Program, error) {
	return openPin(path, ebpf.LoadPinnedProgram)
}
func openPinnedLink(path string) (link.Link, error) { return openPin(path, link.LoadPinnedLink) }

// present hides that an error wraps [os.ErrNotExist], where that is not what is meant by it.
func present(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}
