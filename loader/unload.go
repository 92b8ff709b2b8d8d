// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/revsk/revsk/bpf/sock"
)

// Unload detaches the hooks. The maps stay pinned, so that sockets keep what they remember and a
// later Load goes on with it. Purge removes this datapath's own maps too: what live sockets remember
// is gone then, and their next answer shows a backend's address. The load balancer's maps stay in
// either case. With [Options.DryRun] nothing changes. Returns an error wrapping [ErrNotLoaded] or [ErrLocked].
func Unload(ctx context.Context, opts Options, purge bool) error {
	opts, err := opts.WithDefaults()
	if err != nil {
		return err
	}
	if !exists(opts.PinsDir) {
		return fmt.Errorf("%s: %w", opts.PinsDir, ErrNotLoaded)
	}
	unlock, err := lock(ctx, opts.PinsDir, opts.Wait)
	if err != nil {
		return err
	}
	defer unlock()
	// Writers first, the reverse of attaching: what is written is read to the last.
	for _, h := range slices.Backward(hooks) {
		if err := detachHook(opts, h); err != nil {
			return err
		}
	}
	if err := opts.removePin(opts.linksDir()); err != nil {
		return err
	}
	if !purge {
		return nil
	}
	spec, err := sock.LoadSock()
	if err != nil {
		return fmt.Errorf("reading the compiled programs: %w", err)
	}
	for _, name := range mapNames(spec) {
		if !ownMap(name) {
			continue
		}
		if err := opts.removePin(filepath.Join(opts.PinsDir, name)); err != nil {
			return err
		}
	}
	return opts.removePin(opts.PinsDir)
}
