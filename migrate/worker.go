// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"log/slog"
	"time"

	"github.com/revsk/revsk/loader"
)

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

// worker does the steps of an operation, and keeps the time of each.
type worker struct {
	dp         *datapath               // nil: of a plan
	progress   func(Progress)          // may be nil
	beforeStep func(step string) error // may be nil
	log        *slog.Logger
	steps      []Step
}

func newWorker(progress func(Progress), beforeStep func(step string) error, log *slog.Logger) worker {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return worker{progress: progress, beforeStep: beforeStep, log: log}
}

// openWorker makes one for the loaded datapath, and locks that.
func openWorker(ctx context.Context, opts loader.Options, progress func(Progress), beforeStep func(string) error, log *slog.Logger) (w worker, err error) {
	w = newWorker(progress, beforeStep, log)
	w.dp, err = openDatapath(ctx, opts, w.log)
	return w, err
}

// do runs a step.
func (w *worker) do(name string, f func() error) error {
	if w.beforeStep != nil {
		if err := w.beforeStep(name); err != nil {
			return err
		}
	}
	w.report(name, 0, 0)
	start := time.Now()
	err := f()
	took := time.Since(start)
	w.log.Info("step done", "step", name, "took", took, "error", err)
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
	if w.progress != nil {
		w.progress(Progress{step, done, total})
	}
}
