// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/internal/maplayout"
	"github.com/revsk/revsk/revnat"
)

// tupleTime is the present as the time of a tuple.
func tupleTime() (uint32, error) {
	now, err := kclock.Monotonic()
	return uint32(now / revnat.TimeUnit), err
}

func readConfig(m *ebpf.Map) (cfg sock.SockRevskConfigValue, err error) {
	if err = m.Lookup(uint32(0), &cfg); err != nil {
		err = fmt.Errorf("reading %s: %w", mapConfig, err)
	}
	return cfg, err
}

func (dp *Datapath) config() (sock.SockRevskConfigValue, error) {
	return readConfig(dp.maps[mapConfig])
}

func (dp *Datapath) changeConfig(change func(*sock.SockRevskConfigValue)) error {
	cfg, err := dp.config()
	if err != nil {
		return err
	}
	change(&cfg)
	m := dp.maps[mapConfig]
	if err := m.Put(uint32(0), cfg); err != nil {
		return fmt.Errorf("writing %s: %w", mapConfig, maplayout.Frozen(m, err, ErrFrozen))
	}
	return nil
}
