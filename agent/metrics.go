// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
