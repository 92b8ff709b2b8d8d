// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/revsk/revsk/loader"
)

// problemCodes are those that a series is made for, whether there is such a problem or not.
var problemCodes = []string{
	loader.ProblemNotAttached, loader.ProblemHooksMissing, loader.ProblemLinkDetached, loader.ProblemCgroupRemoved,
	loader.ProblemTakenBack, loader.ProblemBeside, loader.ProblemMapMissing, loader.ProblemMapReplaced, loader.ProblemHashFull,
	loader.ProblemForeign, loader.ProblemMisplaced, loader.ProblemMapFrozen, loader.ProblemUnsafeDir, loader.ProblemLinkUnpinned, loader.ProblemAgentOff, loader.ProblemModeDual, loader.ProblemNotRoot,
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
