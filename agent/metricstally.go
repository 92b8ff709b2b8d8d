// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/migrate"
)

// tally is what the agent has done. It is guarded by the lock of the agent, apart from the histograms.
type tally struct {
	loads, takeovers, ownerRestarts int
	ownerRan                        time.Duration
	errors                          map[string]int
	migrations                      map[string]int // by outcome
	moved                           map[string]int // by action
	terminations                    map[terminationKind]int
	migrationTime, terminationTime  prometheus.Histogram
}

type terminationKind struct {
	outcome  inspect.Outcome
	protocol lbmap.Protocol
}

// The outcomes of migrations.
const (
	migrationDone       = "done"
	migrationUnresolved = "unresolved"
	migrationFailed     = "failed"
)

// init makes series of what can happen, so that the first time is an increase.
func (t *tally) init() {
	t.errors, t.migrations, t.moved = make(map[string]int), make(map[string]int), make(map[string]int)
	t.terminations = make(map[terminationKind]int)
	for _, step := range []string{stepLook, stepLoad, stepMigrate, stepGiveBack, stepBackends, stepTerminate, stepSurvey, stepAudit} {
		t.errors[step] = 0
	}
	for _, outcome := range []string{migrationDone, migrationUnresolved, migrationFailed} {
		t.migrations[outcome] = 0
	}
	for _, action := range []string{"moved", "deleted", "written"} {
		t.moved[action] = 0
	}
	for _, outcome := range []inspect.Outcome{inspect.OutcomeDestroyed, inspect.OutcomeLeft, inspect.OutcomeFailed} {
		for _, protocol := range []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDP} {
			t.terminations[terminationKind{outcome, protocol}] = 0
		}
	}
	t.migrationTime = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: metricMigrateDuration.name, Help: metricMigrateDuration.help, Buckets: prometheus.ExponentialBuckets(0.05, 2, 12),
	})
	t.terminationTime = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: metricTermDuration.name, Help: metricTermDuration.help, Buckets: []float64{.25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300},
	})
}

func (t *tally) migration(r *migrate.Report, err error) {
	switch {
	case err == nil:
		t.migrations[migrationDone]++
	case len(r.Unresolved) > 0:
		t.migrations[migrationUnresolved]++
	default:
		t.migrations[migrationFailed]++
	}
	t.moved["moved"] += r.MovedConn + r.MovedPeers
	t.moved["deleted"] += r.Deleted
	t.moved["written"] += r.Written
	t.migrationTime.Observe(reportDuration(r).Seconds())
}

func (t *tally) termination(e SocketTerminated) {
	t.terminations[terminationKind{e.Outcome, e.Socket.Protocol}]++
	if e.Outcome == inspect.OutcomeDestroyed {
		t.terminationTime.Observe(e.After.Seconds())
	}
}

func (a *Agent) count(f func(*tally)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.tally)
}

func (a *Agent) collectTally(ch chan<- prometheus.Metric) {
	t := &a.tally
	metricLoads.send(ch, float64(t.loads))
	metricTakeovers.send(ch, float64(t.takeovers))
	metricOwnerRestarts.send(ch, float64(t.ownerRestarts))
	metricOwnerRan.send(ch, t.ownerRan.Seconds())
	for outcome, n := range t.migrations {
		metricMigrations.send(ch, float64(n), outcome)
	}
	for action, n := range t.moved {
		metricMigrationMoved.send(ch, float64(n), action)
	}
	for step, n := range t.errors {
		metricErrors.send(ch, float64(n), strings.ReplaceAll(step, " ", "_"))
	}
	for kind, n := range t.terminations {
		metricTerminations.send(ch, float64(n), string(kind.outcome), kind.protocol.String())
	}
	t.migrationTime.Collect(ch)
	t.terminationTime.Collect(ch)
}
