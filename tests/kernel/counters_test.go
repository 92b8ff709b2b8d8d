// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/loader"
)

// Programs count per CPU, and one can interrupt another on the same CPU where the kernel is preemptible: what
// is counted in between must not be lost.
func TestCountersOfThreadsThatPreemptEachOther(t *testing.T) {
	s := newScene(t, loader.ModeStorage, ipv4, unix.IPPROTO_UDP)
	a := s.service()
	ordinary, urgent := s.socket(), s.socket()
	ordinary.connect(a.front)
	urgent.connect(a.front)

	var calls atomic.Int64
	ask := func(x *socket) {
		_, err := x.tryPeername()
		assert.NoError(s, err)
		calls.Add(1)
	}
	// A thread of its own, which ends with the goroutine, on the first CPU that there is.
	var cpus, first unix.CPUSet
	assert.NoError(s, unix.SchedGetaffinity(0, &cpus))
	for cpu := 0; first.Count() == 0; cpu++ {
		if cpus.IsSet(cpu) {
			first.Set(cpu)
		}
	}
	thread := func() {
		runtime.LockOSThread()
		assert.NoError(s, unix.SchedSetaffinity(0, &first))
	}

	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		thread()
		for !done.Load() {
			ask(ordinary)
		}
	})
	wg.Go(func() {
		defer done.Store(true)
		thread()
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
		assert.NoError(s, unix.SchedSetAttr(0, &attr, 0))
		for range scaled(100_000) {
			pause := unix.NsecToTimespec(int64(20 * time.Microsecond))
			_ = unix.Nanosleep(&pause, nil) // a signal of the runtime can end it early
			ask(urgent)
		}
	})
	wg.Wait()
	assert.EqualValues(s, calls.Load(), s.counters().Reversed-s.before.Reversed)
}
