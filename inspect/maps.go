// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

var (
	// ErrNotSupported is returned on a kernel that cannot run the iterators: it is older than 5.9,
	// or was built without its BTF.
	ErrNotSupported = errors.New("kernel has no iterator over socket storage (needs Linux 5.9 with BTF)")

	// ErrNoMap is returned when a call needs a map that [Maps] does not have.
	ErrNoMap = errors.New("map is missing")

	// ErrIncomplete is returned when sockets were left out that are there: the largest buffer was
	// too small, or there were more than the kernel visits in one go.
	ErrIncomplete = errors.New("not every socket was seen")
)

// Maps are the maps that hold what sockets remember. The caller keeps and closes them.
type Maps struct {
	Conn     *ebpf.Map // revsk_conn
	Peers    *ebpf.Map // revsk_peers
	Overflow *ebpf.Map // revsk_overflow
	// Config is revsk_config, which says what mode the hooks are in. Only [Terminate] needs it.
	Config *ebpf.Map
}

func need(maps map[string]*ebpf.Map) error {
	for name, m := range maps {
		if m == nil {
			return fmt.Errorf("%s: %w", name, ErrNoMap)
		}
	}
	return nil
}

// loadError adds ErrNotSupported to what loading or attaching an iterator returned.
func loadError(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}
