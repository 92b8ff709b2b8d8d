// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/internal/kclock"
	"github.com/revsk/revsk/internal/mapdigest"
)

// Status says what is attached and how full the maps are.
type Status struct {
	Mode     Mode     `json:"mode"`
	Features Features `json:"features"`
	// LoadedBy is the [Options.Version] of the last load; empty if it had none.
	LoadedBy string       `json:"loaded_by,omitempty"`
	Hooks    []HookStatus `json:"hooks"`
	Maps     []MapStatus  `json:"maps"`
	Counters Counters     `json:"counters"`
	// Problems are what is not as it has to be, the most important first; nil for a process without
	// CAP_SYS_ADMIN, which cannot look for them.
	Problems []Problem `json:"problems"`
}

// HookStatus is one hook of the cgroup. Attached is false, and the rest empty, where no program of this
// datapath is. Tag and LoadedAt are empty for a process without CAP_SYS_ADMIN.
type HookStatus struct {
	Program   string    `json:"program"`
	Attach    string    `json:"attach"`
	Attached  bool      `json:"attached"`
	Optional  bool      `json:"optional"` // needed by some features only
	ProgramID uint32    `json:"program_id,omitempty"`
	Tag       string    `json:"tag,omitempty"`
	LoadedAt  time.Time `json:"loaded_at,omitzero"`
	// TakenOver is what another agent had on the hook; nil: the hook is this datapath's own.
	TakenOver *TakenOver `json:"taken_over,omitempty"`
}

// TakenOver is the program that was replaced in a takeover, and is kept to be handed back.
type TakenOver struct {
	Program   string `json:"program"` // the reference's name of it
	ProgramID uint32 `json:"program_id"`
	Tag       string `json:"tag"`
	// Link tells whether the hook is held by the agent's link, or attached without one.
	Link bool `json:"link"`
	// BackID is the id of a program that the agent has put back there since; 0: ours is there.
	BackID uint32 `json:"back_id,omitempty"`
}

// MapStatus is one of the maps. Entries is -1 where counting them makes no sense (storage, arrays).
type MapStatus struct {
	Name       string `json:"name"`
	Pin        string `json:"pin"`
	Type       string `json:"type"`
	Entries    int    `json:"entries"`
	MaxEntries uint32 `json:"max_entries"`
	Own        bool   `json:"own"`
}

// Complete tells whether every hook is attached that all features need.
func (s Status) Complete() bool {
	for _, h := range s.Hooks {
		if !h.Attached && !h.Optional {
			return false
		}
	}
	return true
}

// Status reports what runs. Counting the entries of a full map takes a moment.
func (dp *Datapath) Status() (Status, error) {
	return dp.status(ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie)
}

// Health is [Datapath.Status] without the numbers of entries that say nothing of problems: only maps that
// evict entries are counted.
func (dp *Datapath) Health() (Status, error) { return dp.status(ebpf.LRUHash) }

// status counts the entries of some types of maps.
func (dp *Datapath) status(counted ...ebpf.MapType) (Status, error) {
	var s Status
	var err error
	if s.Mode, err = dp.Mode(); err != nil {
		return s, err
	}
	s.Features = *dp.opts.Features
	if s.Counters, err = dp.Counters(); err != nil {
		return s, err
	}
	o, err := observe(dp.opts)
	judged := err == nil
	if errors.Is(err, ErrPermission) {
		o, err = observePins(dp.opts)
	}
	if err != nil {
		return s, err
	}
	if s.Hooks, err = o.hookStatus(); err != nil {
		return s, err
	}
	if o.kept != nil {
		s.LoadedBy = o.kept.LoadedBy
	}
	for _, name := range slices.Sorted(maps.Keys(dp.maps)) {
		m := dp.maps[name]
		ms := MapStatus{
			Name:       name,
			Pin:        dp.opts.pinPath(name),
			Type:       m.Type().String(),
			Entries:    -1,
			MaxEntries: m.MaxEntries(),
			Own:        ownMap(name),
		}
		if slices.Contains(counted, m.Type()) {
			if ms.Entries, err = countEntries(m); err != nil {
				return s, fmt.Errorf("counting the entries of %s: %w", name, err)
			}
		}
		s.Maps = append(s.Maps, ms)
	}
	if judged {
		o.fill(s.Maps)
		s.Problems = o.problems()
	}
	return s, nil
}

// fill takes over what is known of how full the maps are.
func (o *observation) fill(maps []MapStatus) {
	for i := range o.maps {
		for _, ms := range maps {
			if ms.Name == o.maps[i].name && ms.Entries >= 0 {
				o.maps[i].entries, o.maps[i].size = ms.Entries, int(ms.MaxEntries)
			}
		}
	}
}

// Hooks reports what is attached, readers of the state first.
func (dp *Datapath) Hooks() ([]HookStatus, error) {
	if err := dp.checkOpen(); err != nil {
		return nil, err
	}
	o, err := observeWhatOneMay(dp.opts)
	if err != nil {
		return nil, err
	}
	return o.hookStatus()
}

// TakenBack is on how many hooks another agent has put its programs back. They keep the hash only: what
// sockets hold is not what their applications did last. Returns an error wrapping [ErrPermission] or [ErrClosed].
func (dp *Datapath) TakenBack() (n int, err error) {
	if err := dp.checkOpen(); err != nil {
		return 0, err
	}
	o, err := observePins(dp.opts)
	if err != nil {
		return 0, err
	}
	for i := range o.hooks {
		if o.hooks[i].takenBack() {
			n++
		}
	}
	return n, nil
}

func (o *observation) hookStatus() ([]HookStatus, error) {
	var all []HookStatus
	for i := range o.hooks {
		hs, err := o.hooks[i].status()
		if err != nil {
			return nil, err
		}
		all = append(all, hs)
	}
	return all, nil
}

func (h *hookState) status() (HookStatus, error) {
	hs := HookStatus{Program: h.program, Attach: h.attach.String(), Optional: h.wanted != nil}
	if h.pin.err != nil {
		return hs, h.pin.err
	}
	own := h.own()
	if h.saved.id != 0 {
		hs.TakenOver = &TakenOver{
			Program: h.reference, ProgramID: uint32(h.saved.id), Tag: h.saved.tag, Link: h.pin.id != 0 || h.pin.hidden,
		}
		if !h.ours() {
			hs.TakenOver.BackID = uint32(own.id)
		}
	}
	if !h.ours() {
		return hs, nil
	}
	hs.Attached = !h.misplaced()
	hs.ProgramID = uint32(own.id)
	if own.name == "" {
		p, err := describeProgram(own.id)
		if err != nil && !errors.Is(err, ErrPermission) {
			return hs, err
		}
		own.program = p
	}
	hs.Tag = own.tag
	if own.loaded != 0 {
		now, err := kclock.Boot()
		if err != nil {
			return hs, err
		}
		hs.LoadedAt = time.Now().Add(own.loaded - now).Truncate(time.Second)
	}
	return hs, nil
}

// From manyEntries on the kernel counts them; from someEntries on, once the program that counts is loaded.
const (
	manyEntries = 4096
	someEntries = 64
)

// countEntries walks the keys: entries added or removed meanwhile may be missed or counted. Where there are
// many it has the kernel count them, if it can.
func countEntries(m *ebpf.Map) (int, error) {
	var key any
	n := 0
	for limit := 2 * int(m.MaxEntries()); n < limit; n++ {
		if (n == manyEntries || n == someEntries && mapdigest.CanCount()) && m.Type() != ebpf.LPMTrie {
			if all, err := mapdigest.Count(context.Background(), m); err == nil {
				return int(all), nil
			}
		}
		next, err := m.NextKeyBytes(key)
		if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && next == nil {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		key = next
	}
	return n, nil
}
