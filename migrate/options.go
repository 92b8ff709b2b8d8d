// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"log/slog"

	"github.com/revsk/revsk/loader"
)

// Options of [Run].
type Options struct {
	// Loader says where the datapath and the legacy maps are.
	Loader loader.Options
	// To is the mode in which to end, storage or mirror. Default: mirror where hooks were taken over from another agent,
	// which uses the hash, and elsewhere storage.
	To *loader.Mode
	// Engine by which sockets are reached. Default: [EngineAuto].
	Engine Engine
	// KeepStale leaves entries in the hash whose service is gone.
	KeepStale bool
	// UnpinSource removes the pins of the legacy maps once they are empty.
	UnpinSource bool

	// Progress, if not nil, is called now and then, from another goroutine.
	Progress func(Progress)
	// BeforeStep, if not nil, is called before each step. Its error ends the call there.
	BeforeStep func(step string) error
	// Logger for what is done; nil: none.
	Logger *slog.Logger
}

// PlanOptions are the options of [MakePlan].
type PlanOptions struct {
	// Loader says where the legacy maps are, and the datapath if one is loaded.
	Loader loader.Options
	// To is as in [Options]; if nothing is loaded, the default is mirror where an agent runs.
	To *loader.Mode
	// Engine by which sockets are found. Default: [EngineAuto].
	Engine Engine

	// Progress, if not nil, is called now and then, from another goroutine.
	Progress func(Progress)
	// Logger for what is done; nil: none.
	Logger *slog.Logger
}

// RollbackOptions are the options of [Rollback] and [PlanRollback].
type RollbackOptions struct {
	// Loader says where the datapath and the legacy maps are.
	Loader loader.Options
	// Force goes on although the legacy maps have no room for everything: what does not fit is
	// evicted, and its sockets lose their service.
	Force bool

	// Progress, if not nil, is called now and then, from another goroutine.
	Progress func(Progress)
	// BeforeStep, if not nil, is called before each step. Its error ends the call there.
	BeforeStep func(step string) error
	// Logger for what is done; nil: none.
	Logger *slog.Logger
}

// checkTarget makes sure that a migration can end in the mode; nil is the default.
func checkTarget(to *loader.Mode) error {
	if to != nil && *to != loader.ModeStorage && *to != loader.ModeMirror {
		return fmt.Errorf("%w: a migration ends in mode storage or mirror, not %v", ErrInvalid, *to)
	}
	return nil
}

// target is the mode in which a migration ends: the hash is kept where an agent uses it.
func target(to *loader.Mode, agent bool) loader.Mode {
	switch {
	case to != nil:
		return *to
	case agent:
		return loader.ModeMirror
	}
	return loader.ModeStorage
}

// checkLoader fills in the defaults of the loader's options.
func checkLoader(opts *loader.Options) (err error) {
	*opts, err = opts.WithDefaults()
	return err
}
