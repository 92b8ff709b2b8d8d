// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
)

// Options say where the datapath lives and what it does. The zero value, completed by
// [Options.WithDefaults], is right for a node whose load balancer uses the usual places.
type Options struct {
	// Cgroup is a directory of the cgroup2 hierarchy; the hooks apply to the sockets of the
	// processes below it. Default: where cgroup2 is mounted ([FindCgroup2]).
	Cgroup string
	// MapsDir holds the pinned service, backend and legacy maps.
	// Default: /sys/fs/bpf/tc/globals.
	MapsDir string
	// PinsDir holds the pins of this datapath: maps, links in the directory "links", and in "former"
	// what was taken over.
	// Default: /sys/fs/bpf/revsk.
	PinsDir string

	// Mode to switch to; nil keeps the current one. On the first load nil means storage, or dual
	// where the legacy maps hold entries that a migration has to move first.
	Mode *Mode
	// Force switches to Mode, or hands back, even if live sockets lose their service address by it. It
	// makes [Unload] detach hooks that were taken over from another agent, too.
	Force bool

	// Takeover makes [Load] replace, in place, the programs of a reference agent that runs on the cgroup: those
	// of its names (cil_sock4_connect and so on) in links, wherever these are pinned, if anywhere, and
	// those that are attached without a link. What they were is kept, and [HandBack] puts it back. The mode
	// is dual afterwards unless Mode says otherwise. Later loads find the hooks again, with or without this
	// option. Default: take nothing over; with such programs on the cgroup Load then fails.
	Takeover bool
	// TakeoverLinks is the directory where the agent pins its links, and implies Takeover.
	// Default: cilium/socketlb/links/cgroup beside PinsDir.
	TakeoverLinks string

	// LegacyMaxEntries is the size of a legacy map that has to be created. Default: 262144.
	LegacyMaxEntries uint32

	// Features of the datapath; nil: those that it has, or on a first load [DefaultFeatures]. They are
	// kept with the datapath.
	Features *Features
	// ChangeFeatures, if not nil, changes some of them. It is called when nobody else can.
	ChangeFeatures func(*Features)
	// Said are the features, by their names in JSON, about which the caller is sure. The first takeover finds
	// out how the agent's programs are configured; what it cannot find out must be said here, and set by
	// ChangeFeatures if it is not the default. Features, if given, says everything.
	Said []string
	// AgentState is where the agent keeps the header with which it compiled its programs. Default:
	// /var/run/cilium/state.
	AgentState string

	// Version is that of the program which calls: a load keeps it with the datapath ([Status.LoadedBy]).
	Version string

	// Programs keeps the programs for later calls of this process; nil: they are loaded anew.
	Programs *Programs

	// Wait is for how long to wait for another process that holds the lock, before the call fails with
	// [ErrLocked]; less than 0: until the context ends. Those who wait get the lock in turn.
	// Default: not to wait.
	Wait time.Duration

	// OnChange, if not nil, is called with each change that was made, in order. A call that fails
	// then takes them back.
	OnChange func(Change)

	// Logger for what is done; nil: none.
	Logger *slog.Logger

	// step is called before every step of a plan, and after the last one; tests make it fail.
	step func(name string) error
	// build reads the compiled programs; nil: those of this build. Tests have another.
	build func() (*ebpf.CollectionSpec, error)
}

// WithDefaults fills what is empty. Returns an error wrapping [ErrNoCgroup2] if there is no cgroup2
// mount to default to, or [ErrInvalid].
func (o Options) WithDefaults() (Options, error) {
	if o.Cgroup == "" {
		path, err := FindCgroup2()
		if err != nil {
			return o, err
		}
		o.Cgroup = path
	}
	if o.MapsDir == "" {
		o.MapsDir = "/sys/fs/bpf/tc/globals"
	}
	if o.PinsDir == "" {
		o.PinsDir = "/sys/fs/bpf/revsk"
	}
	if o.AgentState == "" {
		o.AgentState = "/var/run/cilium/state"
	}
	if o.TakeoverLinks != "" {
		o.Takeover = true
	} else if o.Takeover {
		o.TakeoverLinks = filepath.Join(filepath.Dir(o.PinsDir), "cilium", "socketlb", "links", "cgroup")
	}
	if o.Features != nil {
		if err := o.Features.check(); err != nil {
			return o, err
		}
	}
	if o.Mode != nil {
		if err := o.Mode.check(); err != nil {
			return o, err
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.step == nil {
		o.step = func(string) error { return nil }
	}
	return o, nil
}

// setConstants sets the load-time constants.
func setConstants(spec *ebpf.CollectionSpec, constants map[string]any) error {
	for name, value := range constants {
		v, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("the programs have no constant %s", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return nil
}
