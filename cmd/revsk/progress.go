// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/revsk/revsk/migrate"
)

// How often progress is shown.
const (
	liveInterval = 100 * time.Millisecond
	logInterval  = 5 * time.Second
)

// progress shows at intervals how far the work has come, until it is stopped.
type progress struct {
	show func(text string, p position)

	mu    sync.Mutex
	at    migrate.Progress
	since time.Time // when the step, or its present round, began

	done, stopped chan struct{}
}

// position is where the work is in a step.
type position struct {
	migrate.Progress
	elapsed time.Duration
}

// startProgress begins to show progress: on a terminal in one line that is rewritten, elsewhere in lines of a log. Call report
// with progress, unless it is nil, and stop at the end.
func (e *env) startProgress() (report func(migrate.Progress), stop func()) {
	if e.quiet {
		return nil, func() {}
	}
	if f, ok := e.Stderr.(*os.File); ok && !e.verbose && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p := newProgress(liveInterval, func(text string, _ position) { writeLive(f, text, terminalWidth(f)) })
		return p.report, func() {
			p.stop()
			writeLive(f, "", 0)
		}
	}
	log := slog.New(slog.NewTextHandler(e.Stderr, nil))
	p := newProgress(logInterval, func(_ string, p position) { p.log(log) })
	return p.report, p.stop
}

func newProgress(interval time.Duration, show func(string, position)) *progress {
	p := &progress{show: show, done: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(p.stopped)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if at := p.position(time.Now()); at.Step != "" {
					p.show(at.text(), at)
				}
			case <-p.done:
				return
			}
		}
	}()
	return p
}

// stop returns when nothing is shown any more.
func (p *progress) stop() {
	close(p.done)
	<-p.stopped
}

// report notes progress.
func (p *progress) report(at migrate.Progress) { p.reportAt(at, time.Now()) }

func (p *progress) reportAt(at migrate.Progress, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at.Step != p.at.Step || at.Done < p.at.Done {
		p.since = now
	}
	p.at = at
}

func (p *progress) position(now time.Time) position {
	p.mu.Lock()
	defer p.mu.Unlock()
	return position{p.at, now.Sub(p.since)}
}

// rate is in entries per second; 0: unknown.
func (p position) rate() int {
	if p.elapsed <= 0 {
		return 0
	}
	return int(float64(p.Done) / p.elapsed.Seconds())
}

// left is an estimate of the time that is left; 0: unknown. It is too high if entries are leaked: their sockets are never met.
func (p position) left() time.Duration {
	if p.Done <= 0 || p.Done >= p.Total {
		return 0
	}
	left := time.Duration(float64(p.elapsed) / float64(p.Done) * float64(p.Total-p.Done))
	return max(time.Second, left.Round(time.Second))
}

func (p position) text() string {
	elapsed := p.elapsed.Truncate(time.Second)
	if p.Total == 0 {
		return fmt.Sprintf("%s, %v", p.Step, elapsed)
	}
	text := fmt.Sprintf("%s: %d of %d (%d%%), %d/s, %v", p.Step, p.Done, p.Total, 100*p.Done/p.Total, p.rate(), elapsed)
	if left := p.left(); left > 0 {
		text += fmt.Sprintf(", at most %v left", left)
	}
	return text
}

func (p position) log(log *slog.Logger) {
	attrs := []any{"step", p.Step, "elapsed", p.elapsed.Truncate(time.Second)}
	if p.Total > 0 {
		attrs = append(attrs, "done", p.Done, "total", p.Total, "per_second", p.rate())
	}
	if left := p.left(); left > 0 {
		attrs = append(attrs, "left_at_most", left)
	}
	log.Info("progress", attrs...)
}

// writeLive replaces the last line of a terminal. A text that is too wide would begin a new one.
func writeLive(w io.Writer, text string, width int) {
	if len(text) > width {
		text = text[:width]
	}
	fmt.Fprintf(w, "\r\x1b[K%s", text)
}

// terminalWidth is the width of a line in characters, without the last one, after which some terminals wrap.
func terminalWidth(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 1 {
		width = 80
	}
	return width - 1
}
