// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/revsk/revsk/bpf/sock"
)

// Counters are the datapath's counters since it was first loaded, summed over the CPUs. At any
// moment Stored is the sum of Released, Evicted, the Dropped ones, and the tuples on live sockets. Their
// meaning is described in bpf/lib/metrics.h.
type Counters struct {
	Stored            uint64 `json:"stored"`
	Updated           uint64 `json:"updated"`
	Released          uint64 `json:"released"`
	DroppedDirect     uint64 `json:"dropped_direct"`
	DroppedReplaced   uint64 `json:"dropped_replaced"`
	Evicted           uint64 `json:"evicted"`
	ReleaseZeroed     uint64 `json:"release_zeroed"`
	RejectedNoBackend uint64 `json:"rejected_no_backend"`
	RejectedNoMemory  uint64 `json:"rejected_no_memory"`
	Translated        uint64 `json:"translated"`
	Reversed          uint64 `json:"reversed"`
	HashNotWritten    uint64 `json:"hash_not_written"`
}

// Live is the number of tuples on live sockets, as far as the counters know: sockets that were
// closed while no hook was attached are counted as live.
func (c Counters) Live() int64 {
	return int64(c.Stored) - int64(c.Released+c.DroppedDirect+c.DroppedReplaced+c.Evicted)
}

// Counters reads the counters.
func (dp *Datapath) Counters() (Counters, error) {
	var c Counters
	if err := dp.checkOpen(); err != nil {
		return c, err
	}
	for metric, field := range map[sock.SockRevskMetric]*uint64{
		sock.SockRevskMetricREVSK_STORED:              &c.Stored,
		sock.SockRevskMetricREVSK_UPDATED:             &c.Updated,
		sock.SockRevskMetricREVSK_RELEASED:            &c.Released,
		sock.SockRevskMetricREVSK_DROPPED_DIRECT:      &c.DroppedDirect,
		sock.SockRevskMetricREVSK_DROPPED_REPLACED:    &c.DroppedReplaced,
		sock.SockRevskMetricREVSK_EVICTED:             &c.Evicted,
		sock.SockRevskMetricREVSK_RELEASE_ZEROED:      &c.ReleaseZeroed,
		sock.SockRevskMetricREVSK_REJECTED_NO_BACKEND: &c.RejectedNoBackend,
		sock.SockRevskMetricREVSK_REJECTED_NO_MEMORY:  &c.RejectedNoMemory,
		sock.SockRevskMetricREVSK_TRANSLATED:          &c.Translated,
		sock.SockRevskMetricREVSK_REVERSED:            &c.Reversed,
		sock.SockRevskMetricREVSK_HASH_NOT_WRITTEN:    &c.HashNotWritten,
	} {
		if uint32(metric) >= dp.maps[mapMetrics].MaxEntries() {
			continue // the map is of an older release, and lives on
		}
		var perCPU []uint64
		if err := dp.maps[mapMetrics].Lookup(uint32(metric), &perCPU); err != nil {
			return c, fmt.Errorf("reading counter %d: %w", metric, err)
		}
		for _, n := range perCPU {
			*field += n
		}
	}
	return c, nil
}
