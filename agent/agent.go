// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/capability"
	"github.com/revsk/revsk/internal/probe"
	"github.com/revsk/revsk/loader"
)

// Agent is an agent that runs, or is about to. Its methods may be called by several goroutines.
//
// It is a prometheus.Collector.
type Agent struct {
	eventLock sync.Mutex      // events come one after the other
	ctx       context.Context // of Run
	began     time.Time
	ran       atomic.Bool
	stirred   atomic.Uint64 // how often others were seen to change programs or pins

	mu       sync.Mutex
	opts     Options
	reload   bool // the options have changed in what a load makes of them
	view     view
	tally    tally
	beats    map[string]time.Time // by loop: when it last showed that it is alive
	failing  map[string]string    // by step: its last error
	datapath *loader.Datapath     // nil: nothing is loaded
}

// view is what was seen last.
type view struct {
	waiting  bool
	looked   bool // at the datapath
	standby  bool // the hooks were given back, since the owner is gone
	mode     loader.Mode
	loaded   bool
	hooks    []loader.HookStatus
	problems []loader.Problem
	backends backendsView
	survey   *survey
	audit    *audit
}

// New makes an agent. Returns an error wrapping [ErrInvalid] or those of [loader.Options.WithDefaults].
func New(opts Options) (*Agent, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{opts: opts, began: time.Now(), beats: make(map[string]time.Time), failing: make(map[string]string)}
	a.tally.init()
	return a, nil
}

// Run is [New] and [Agent.Run].
func Run(ctx context.Context, opts Options) error {
	a, err := New(opts)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// Run works until the context ends. What fails is tried again, and is no error of Run. Run may be called once.
//
// Returns an error wrapping [ErrClosed], [loader.ErrPermission] without CAP_SYS_ADMIN, one if the lock of the agents cannot be
// taken, or one if [StopHandBack] fails.
func (a *Agent) Run(ctx context.Context) error {
	if a == nil || a.ran.Swap(true) {
		return ErrClosed
	}
	a.ctx = ctx
	opts := a.options()
	if missing := capability.Missing(unix.CAP_SYS_ADMIN); missing != "" {
		return fmt.Errorf("%w: no %s", loader.ErrPermission, missing)
	}
	if err := probe.AllowMaps(); err != nil {
		return fmt.Errorf("%w: %w", loader.ErrPermission, err)
	}
	// An audit does not get into anybody's way.
	if !opts.AuditOnly {
		a.beat(loopDatapath)
		dir := lockDir(opts.Loader.PinsDir)
		unlock, err := lock(ctx, dir, func() {
			a.update(func(v *view) { v.waiting = true })
			a.happen(Waiting{dir})
		})
		if err == nil {
			defer unlock()
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		a.beat(loopDatapath)
		a.update(func(v *view) { v.waiting = false })
	}
	a.happen(Started{opts})
	defer a.setDatapath(nil)
	var wg sync.WaitGroup
	if !opts.AuditOnly {
		wg.Go(func() { newKeeper(a).run(ctx) })
		wg.Go(func() { newTerminator(a).run(ctx) })
	}
	wg.Go(func() { newSurveyor(a).run(ctx) })
	wg.Wait()
	if !opts.AuditOnly && a.options().OnStop == StopHandBack {
		return a.giveBack(context.WithoutCancel(ctx), false)
	}
	return nil
}

// Configure changes the options of an agent that runs. What is not about the datapath counts from then on; what is makes it
// load the datapath anew. Returns an error wrapping [ErrClosed], or [ErrInvalid] if they are about another datapath, or make an
// audit of an agent.
func (a *Agent) Configure(opts Options) error {
	if a == nil {
		return ErrClosed
	}
	opts, err := opts.WithDefaults()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.opts.samePlaces(opts) {
		return fmt.Errorf("%w: the places of the datapath and audit-only are those of the start", ErrInvalid)
	}
	a.reload = a.reload || !a.opts.sameDatapath(opts)
	a.opts = opts
	return nil
}

func (a *Agent) options() Options {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.opts
}

func (a *Agent) update(f func(*view)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.view)
}

// setDatapath sets what metrics are read from.
func (a *Agent) setDatapath(dp *loader.Datapath) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.datapath != nil {
		a.datapath.Close()
	}
	a.datapath = dp
}

// The loops.
const (
	loopDatapath = "datapath"
	loopBackends = "backends"
	loopSurvey   = "survey"
)

// stuckAfter is for how long a loop may show no sign of life.
const stuckAfter = 3 * time.Minute

func (a *Agent) beat(loop string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.beats[loop] = time.Now()
}

// Alive returns an error if a part of the agent is stuck, so that it is to be started again.
func (a *Agent) Alive() error {
	if a == nil {
		return ErrClosed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stuck()
}

// stuck is why Alive fails.
func (a *Agent) stuck() error {
	for loop, last := range a.beats {
		if silent := time.Since(last); silent > stuckAfter && !a.view.waiting {
			return fmt.Errorf("the loop %q has been stuck for %v", loop, silent.Round(time.Second))
		}
	}
	return nil
}

// Ready returns nil if the node is right: the datapath is complete, nothing is wrong that keeps applications from their
// services, and no part of the agent is stuck. For an agent that only audits: if the first audit is done.
func (a *Agent) Ready() error {
	if a == nil {
		return ErrClosed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &a.view
	if err := a.stuck(); err != nil {
		return err
	}
	switch {
	case v.waiting:
		return errors.New("another agent runs on this node")
	case a.opts.AuditOnly:
		if v.audit == nil {
			return a.firstFailure("not audited yet")
		}
		return nil
	case !v.looked:
		return a.firstFailure("not looked yet")
	case v.standby:
		return nil
	case !v.loaded:
		return a.firstFailure("not loaded")
	}
	var texts []string
	for _, p := range v.problems {
		switch p.Code {
		case loader.ProblemHashFull, loader.ProblemModeDual:
		case loader.ProblemAgentOff:
			if a.opts.WhenOwnerLeaves == OwnerStay {
				continue
			}
			fallthrough
		default:
			texts = append(texts, p.Code+": "+p.Text)
		}
	}
	if len(texts) > 0 {
		return errors.New(strings.Join(texts, "; "))
	}
	return nil
}

// firstFailure is what keeps the agent from being ready.
func (a *Agent) firstFailure(otherwise string) error {
	for _, step := range []string{stepLoad, stepLook, stepAudit} {
		if text := a.failing[step]; text != "" {
			return fmt.Errorf("%s: %s", step, text)
		}
	}
	return errors.New(otherwise)
}

// The steps that can fail.
const (
	stepLook      = "look"
	stepLoad      = "load"
	stepMigrate   = "migrate"
	stepGiveBack  = "give back"
	stepBackends  = "read backends"
	stepTerminate = "terminate"
	stepSurvey    = "survey"
	stepAudit     = "audit"
)

// outcome notes how a step has ended, and returns whether it was well. An error is said once, until it is another one.
func (a *Agent) outcome(step string, err error) bool {
	if errors.Is(err, context.Canceled) && a.ctx.Err() != nil {
		return false
	}
	a.mu.Lock()
	text := ""
	if err != nil {
		text = err.Error()
		a.tally.errors[step]++
	}
	said := a.failing[step] == text
	a.failing[step] = text
	a.mu.Unlock()
	if err != nil && !said {
		a.happen(Failed{step, err})
	}
	return err == nil
}
