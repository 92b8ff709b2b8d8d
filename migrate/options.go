// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"log/slog"
	"time"

	"github.com/revsk/revsk/loader"
)

// Options say where the datapath is and how it is migrated.
type Options struct {
	// Loader says where the datapath and the legacy maps are.
	Loader loader.Options
	// Engine by which sockets are reached. Default: [EngineAuto].
	Engine Engine
	// KeepStale leaves entries in the hash whose service is gone.
	KeepStale bool
	// UnpinSource removes the pins of the legacy maps once they are empty.
	UnpinSource bool
	// Force makes [Rollback] go on although the legacy maps have no room for everything: what does
	// not fit is evicted, and its sockets lose their service.
	Force bool
	// DryRun makes [Rollback] say what it would do.
	DryRun bool

	// Progress, if not nil, is called now and then, from another goroutine.
	Progress func(Progress)
	// BeforeStep, if not nil, is called before each step. Its error ends the call there.
	BeforeStep func(step string) error
	// Logger for what is done; nil: none.
	Logger *slog.Logger
}

// Progress is how far a step has come.
type Progress struct {
	Step string
	// Done of Total entries or tuples. Total is 0 where that is not known.
	Done, Total int
}

// Step is a part of the work and how long it took, all rounds together.
type Step struct {
	Name     string
	Duration time.Duration
}

func (o Options) withDefaults() (Options, error) {
	var err error
	if o.Loader, err = o.Loader.WithDefaults(); err != nil {
		return o, err
	}
	if o.Engine == "" {
		o.Engine = EngineAuto
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.BeforeStep == nil {
		o.BeforeStep = func(string) error { return nil }
	}
	return o, nil
}

// worker does the steps of a migration or rollback, and keeps the time of each.
type worker struct {
	Options
	steps []Step
}

// do runs a step.
func (w *worker) do(name string, f func() error) error {
	if err := w.BeforeStep(name); err != nil {
		return err
	}
	w.report(name, 0, 0)
	start := time.Now()
	err := f()
	took := time.Since(start)
	w.Logger.Info("step done", "step", name, "took", took, "error", err)
	for i := range w.steps {
		if w.steps[i].Name == name {
			w.steps[i].Duration += took
			return err
		}
	}
	w.steps = append(w.steps, Step{name, took})
	return err
}

func (w *worker) report(step string, done, total int) {
	if w.Progress != nil {
		w.Progress(Progress{step, done, total})
	}
}
