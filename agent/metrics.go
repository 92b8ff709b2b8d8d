// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// family is a family of metrics. docs/agent.md has a table of them.
type family struct {
	name   string
	kind   prometheus.ValueType // untyped: a histogram
	labels []string
	help   string
	desc   *prometheus.Desc
}

var families []*family

func newFamily(kind prometheus.ValueType, name, help string, labels ...string) *family {
	f := &family{"revsk_" + name, kind, labels, help, prometheus.NewDesc("revsk_"+name, help, labels, nil)}
	families = append(families, f)
	return f
}

func gauge(name, help string, labels ...string) *family {
	return newFamily(prometheus.GaugeValue, name, help, labels...)
}

func counter(name, help string, labels ...string) *family {
	return newFamily(prometheus.CounterValue, name, help, labels...)
}

func (f *family) send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var (
	metricReady   = gauge("ready", "1 if the node is right, as /readyz has it.")
	metricMode    = gauge("mode", "1 for the mode of the datapath.", "mode")
	metricHooks   = gauge("hooks", "Hooks by what is on them: attached, missing, or taken_back by another agent.", "state")
	metricProblem = gauge("problem", "1 while there is a problem of this code, as revsk status has it.", "code")

	metricStored        = counter("tuples_stored_total", "Tuples added to sockets.")
	metricUpdated       = counter("tuples_updated_total", "Tuples that changed in place: same peer, another service.")
	metricReleased      = counter("tuples_released_total", "Tuples that were on a socket when it was closed.")
	metricDropped       = counter("tuples_dropped_total", "Tuples dropped because the application turned elsewhere.", "reason")
	metricEvicted       = counter("tuples_evicted_total", "Tuples that had to make room for another on the same socket.")
	metricZeroed        = counter("releases_zeroed_total", "Releases whose destination the kernel had zeroed: each would have leaked an entry of the hash.")
	metricRejected      = counter("calls_rejected_total", "Calls of applications that were rejected.", "reason")
	metricTranslated    = counter("calls_translated_total", "Connects and sends rewritten to a backend, where the programs count them.")
	metricReversed      = counter("reads_reversed_total", "Reads rewritten to a service, where the programs count them.")
	metricNotWritten    = counter("hash_not_written_total", "Tuples that the hash has not taken, in mode mirror.")
	metricTuplesCounted = gauge("tuples_counted", "Tuples on live sockets, as far as the counters know.")

	metricTuples         = gauge("tuples", "Tuples on live sockets by what the peer is to the socket, as of the last survey.", "role")
	metricSockets        = gauge("sockets", "Sockets that hold tuples, as of the last survey.", "protocol", "family")
	metricServiceSockets = gauge("service_sockets", "Sockets connected to a service, for those with the most, as of the last survey.", "service", "protocol")
	metricBackendSockets = gauge("backend_sockets", "Sockets connected to a backend through a service, for those with the most; off by default.", "backend", "protocol")
	metricSurveyTime     = gauge("survey_timestamp_seconds", "When the last survey of sockets ended.")
	metricSurveyDuration = gauge("survey_duration_seconds", "How long it took.")

	metricMapEntries = gauge("map_entries", "Entries of a map of the load balancer, as of the last survey.", "map")
	metricMapSize    = gauge("map_max_entries", "How many entries the map has room for.", "map")

	metricHashEntries   = gauge("hash_entries", "Entries of the hash by the verdict of the last audit.", "verdict")
	metricWithoutEntry  = gauge("hash_sockets_without_entry", "Sockets connected to a backend that had no entry in the hash, as of the last audit.")
	metricAuditTime     = gauge("audit_timestamp_seconds", "When the last audit of the hash ended.")
	metricAuditDuration = gauge("audit_duration_seconds", "How long it took.")

	metricBackends     = gauge("backends", "Backends in the maps of the load balancer.")
	metricBackendsGone = gauge("backends_gone", "Backends that are gone and whose sockets are yet to be ended.")
	metricHeld         = gauge("terminations_held", "1 while sockets of backends that seem to be gone are not ended.", "reason")
	metricTerminations = counter("terminations_total", "Sockets of backends that were gone, by what became of them.", "outcome", "protocol")
	metricTermDuration = newFamily(prometheus.UntypedValue, "termination_duration_seconds", "Time from when a backend was seen to be gone until a socket of it was ended.")

	metricLoads           = counter("loads_total", "Loads of the datapath by this process, takeovers apart.")
	metricTakeovers       = counter("takeovers_total", "Takeovers of hooks from another agent by this process.")
	metricOwnerRestarts   = counter("owner_restarts_total", "How often another agent was seen to have put its programs back.")
	metricOwnerRan        = counter("owner_programs_seconds_total", "How long another agent's programs had been back before the hooks were taken over again.")
	metricMigrations      = counter("migrations_total", "Migrations by how they ended: done, unresolved or failed.", "outcome")
	metricMigrationMoved  = counter("migration_entries_total", "Entries of the hash that migrations have moved onto sockets, deleted or written.", "action")
	metricMigrateDuration = newFamily(prometheus.UntypedValue, "migration_duration_seconds", "How long migrations took.")
	metricErrors          = counter("agent_errors_total", "Steps of the agent that failed. Each is tried again.", "step")

	metricRunSeconds = counter("program_run_seconds_total", "Time spent in a program of the datapath since it was loaded; where kernel.bpf_stats_enabled is set.", "program")
	metricRuns       = counter("program_runs_total", "Runs of a program of the datapath since it was loaded; where kernel.bpf_stats_enabled is set.", "program")
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

// Describe implements prometheus.Collector.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector. It visits no sockets, and reads no maps but that of the counters.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	metricReady.send(ch, bit(a.Ready() == nil))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.collectDatapath(ch)
	a.collectTally(ch)
	a.collectBackends(ch)
	if s := a.view.survey; s != nil {
		a.collectSurvey(ch, s)
	}
	if audit := a.view.audit; audit != nil {
		audit.collect(ch)
	}
}

// problemCodes are those that a series is made for, whether there is such a problem or not.
var problemCodes = []string{
	loader.ProblemNotAttached, loader.ProblemHooksMissing, loader.ProblemLinkDetached, loader.ProblemCgroupRemoved,
	loader.ProblemTakenBack, loader.ProblemBeside, loader.ProblemMapMissing, loader.ProblemMapReplaced, loader.ProblemHashFull,
	loader.ProblemUnsafeDir, loader.ProblemLinkUnpinned, loader.ProblemAgentOff, loader.ProblemModeDual, loader.ProblemNotRoot,
}

func (a *Agent) collectDatapath(ch chan<- prometheus.Metric) {
	codes := make(map[string]bool)
	for _, code := range problemCodes {
		codes[code] = false
	}
	for _, p := range a.view.problems {
		codes[p.Code] = true
	}
	for code, is := range codes {
		metricProblem.send(ch, bit(is), code)
	}
	if a.datapath == nil {
		return
	}
	if mode, err := a.datapath.Mode(); err == nil {
		for _, m := range []loader.Mode{loader.ModeStorage, loader.ModeMirror, loader.ModeDual, loader.ModeLegacy} {
			metricMode.send(ch, bit(m == mode), m.String())
		}
	}
	states := map[string]int{"attached": 0, "missing": 0, "taken_back": 0}
	for _, h := range a.view.hooks {
		switch {
		case h.Attached:
			states["attached"]++
		case h.TakenOver != nil && h.TakenOver.BackID != 0:
			states["taken_back"]++
		case !h.Optional:
			states["missing"]++
		}
	}
	for state, n := range states {
		metricHooks.send(ch, float64(n), state)
	}
	if c, err := a.datapath.Counters(); err == nil {
		collectCounters(ch, c)
	}
	a.collectPrograms(ch)
}

func collectCounters(ch chan<- prometheus.Metric, c loader.Counters) {
	for _, m := range []struct {
		*family
		value  uint64
		labels []string
	}{
		{metricStored, c.Stored, nil},
		{metricUpdated, c.Updated, nil},
		{metricReleased, c.Released, nil},
		{metricDropped, c.DroppedDirect, []string{"direct"}},
		{metricDropped, c.DroppedReplaced, []string{"replaced"}},
		{metricEvicted, c.Evicted, nil},
		{metricZeroed, c.ReleaseZeroed, nil},
		{metricRejected, c.RejectedNoBackend, []string{"no_backend"}},
		{metricRejected, c.RejectedNoMemory, []string{"no_memory"}},
		{metricTranslated, c.Translated, nil},
		{metricReversed, c.Reversed, nil},
		{metricNotWritten, c.HashNotWritten, nil},
	} {
		m.send(ch, float64(m.value), m.labels...)
	}
	metricTuplesCounted.send(ch, float64(c.Live()))
}

// collectPrograms sends the statistics that the kernel keeps of programs.
func (a *Agent) collectPrograms(ch chan<- prometheus.Metric) {
	if on, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); err != nil || strings.TrimSpace(string(on)) == "0" {
		return
	}
	for _, h := range a.view.hooks {
		if !h.Attached || h.ProgramID == 0 {
			continue
		}
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(h.ProgramID))
		if err != nil {
			continue // replaced meanwhile
		}
		stats, err := prog.Stats()
		prog.Close()
		if err != nil {
			continue
		}
		name := strings.TrimPrefix(h.Program, "revsk_")
		metricRunSeconds.send(ch, stats.Runtime.Seconds(), name)
		metricRuns.send(ch, float64(stats.RunCount), name)
	}
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

func (a *Agent) collectBackends(ch chan<- prometheus.Metric) {
	b := &a.view.backends
	if b.present != nil {
		metricBackends.send(ch, float64(len(b.present)))
	}
	metricBackendsGone.send(ch, float64(b.gone))
	for _, reason := range holdReasons {
		metricHeld.send(ch, bit(b.held == reason.text), reason.label)
	}
}

func (a *Agent) collectSurvey(ch chan<- prometheus.Metric, s *survey) {
	for _, role := range []inspect.Role{inspect.RoleConnected, inspect.RoleDisconnected, inspect.RoleFormer, inspect.RoleSent} {
		metricTuples.send(ch, float64(s.tuples[role]), string(role))
	}
	for kind, n := range s.sockets {
		metricSockets.send(ch, float64(n), kind.protocol.String(), kind.family.String())
	}
	for _, c := range s.services {
		metricServiceSockets.send(ch, float64(c.n), c.key.service.String(), c.key.protocol.String())
	}
	for _, c := range s.backends {
		metricBackendSockets.send(ch, float64(c.n), c.key.AddrPort.String(), c.key.Protocol.String())
	}
	for _, f := range s.fill {
		metricMapEntries.send(ch, float64(f.entries), f.name)
		metricMapSize.send(ch, float64(f.size), f.name)
	}
	metricSurveyTime.send(ch, seconds(s.at))
	metricSurveyDuration.send(ch, s.duration.Seconds())
}

// largest returns the keys of the largest numbers, n of them at most.
func largest[K comparable](of map[K]int, n int) []counted[K] {
	if n <= 0 {
		return nil
	}
	type named struct {
		counted[K]
		name string
	}
	all := make([]named, 0, len(of))
	for key, n := range of {
		all = append(all, named{counted[K]{key, n}, fmt.Sprint(key)})
	}
	slices.SortFunc(all, func(a, b named) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.name, b.name)) })
	most := make([]counted[K], min(n, len(all)))
	for i := range most {
		most[i] = all[i].counted
	}
	return most
}

func (a *audit) collect(ch chan<- prometheus.Metric) {
	p := a.plan
	live := 0
	for _, l := range p.Live {
		live += l.Entries
	}
	// Those that sockets still need are counted by what a migration would do with them, too.
	for verdict, n := range map[string]int{
		"live": live, "stale": p.Stale, "leaked": p.Leaked, "ended": p.Ended, "unknown": p.Unknown,
	} {
		metricHashEntries.send(ch, float64(n), verdict)
	}
	metricWithoutEntry.send(ch, float64(p.WithoutEntrySum()))
	metricAuditTime.send(ch, seconds(a.at))
	metricAuditDuration.send(ch, a.duration.Seconds())
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// MetricsTable is the table of all metrics, in Markdown.
func MetricsTable() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | says |\n|---|---|---|---|\n")
	for _, f := range families {
		kind := map[prometheus.ValueType]string{
			prometheus.GaugeValue: "gauge", prometheus.CounterValue: "counter", prometheus.UntypedValue: "histogram",
		}[f.kind]
		labels := ""
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "` `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, kind, labels, strings.TrimSuffix(f.help, "."))
	}
	return b.String()
}
