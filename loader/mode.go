// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/revsk/revsk/bpf/sock"
)

// Mode says which state the hooks write and read. It is switched at run time, without reloading.
type Mode uint32

const (
	// ModeStorage writes and reads socket storage.
	ModeStorage = Mode(sock.SockRevskModeREVSK_MODE_STORAGE)
	// ModeDual writes storage and hash; reads storage, then hash.
	ModeDual = Mode(sock.SockRevskModeREVSK_MODE_DUAL)
	// ModeLegacy writes and reads the global hash only.
	ModeLegacy = Mode(sock.SockRevskModeREVSK_MODE_LEGACY)
	// ModeMirror is as ModeDual, on a node where the hash has nothing that is not on its socket: sockets
	// without storage have nothing to do with the hash, and what it does not take rejects nothing.
	ModeMirror = Mode(sock.SockRevskModeREVSK_MODE_MIRROR)
)

var modeNames = map[Mode]string{
	ModeStorage: "storage",
	ModeDual:    "dual",
	ModeLegacy:  "legacy",
	ModeMirror:  "mirror",
}

// ParseMode is the inverse of [Mode.String].
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown mode %q: use storage, mirror, dual or legacy", s)
}

// check returns an error wrapping [ErrInvalid] for what is no mode.
func (m Mode) check() error {
	if _, ok := modeNames[m]; !ok {
		return fmt.Errorf("%w: %v", ErrInvalid, m)
	}
	return nil
}

func (m Mode) String() string {
	if name, ok := modeNames[m]; ok {
		return name
	}
	return fmt.Sprintf("mode(%d)", uint32(m))
}

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	var err error
	*m, err = ParseMode(string(text))
	return err
}
