// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"slices"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/revnat"
)

// setMark marks the beginning of our hooks, if sockets may remember something from before that has changed
// while others ran, or none: the hooks look at its service again until the application has confirmed it. It
// comes before the first hook is attached.
func (dp *Datapath) setMark(seats []*seat, fresh bool, undo *undoer) error {
	missed := slices.ContainsFunc(seats, func(s *seat) bool { return s.wanted == nil && !s.ours() })
	if !missed || fresh || dp.opts.dryRun {
		return nil
	}
	if err := dp.opts.step("set mark"); err != nil {
		return err
	}
	before, err := dp.config()
	if err != nil {
		return err
	}
	now, err := tupleTime()
	if err != nil {
		return err
	}
	undo.add(func() error { return dp.putMark(before.Mark) })
	return dp.putMark(now)
}

func (dp *Datapath) putMark(mark uint32) error {
	return dp.changeConfig(func(cfg *sock.SockRevskConfigValue) { cfg.Mark = mark })
}

// tupleTime is the present as the time of a tuple.
func tupleTime() (uint32, error) {
	now, err := kclock.Monotonic()
	return uint32(now / revnat.TimeUnit), err
}

func (dp *Datapath) config() (sock.SockRevskConfigValue, error) {
	var cfg sock.SockRevskConfigValue
	if err := dp.maps[mapConfig].Lookup(uint32(0), &cfg); err != nil {
		return cfg, fmt.Errorf("reading %s: %w", mapConfig, err)
	}
	return cfg, nil
}

func (dp *Datapath) changeConfig(change func(*sock.SockRevskConfigValue)) error {
	cfg, err := dp.config()
	if err != nil {
		return err
	}
	change(&cfg)
	if err := dp.maps[mapConfig].Put(uint32(0), cfg); err != nil {
		return fmt.Errorf("writing %s: %w", mapConfig, err)
	}
	return nil
}
