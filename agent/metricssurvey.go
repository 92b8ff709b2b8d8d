// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/revsk/revsk/inspect"
)

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
