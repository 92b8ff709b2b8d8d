// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// benchServices are n services with 3 backends each, of which generation makes others.
func benchServices(n, generation int) []Service {
	services := make([]Service, n)
	for i := range services {
		s := &services[i]
		s.Frontend = Frontend{AddrPort: numbered(10, i, 80), Protocol: ProtocolTCP}
		for b := range 3 {
			s.Backends = append(s.Backends, Backend{AddrPort: numbered(20+generation, 3*i+b, 8080), Protocol: ProtocolTCP})
		}
	}
	return services
}

func numbered(first, n int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(first), byte(n >> 16), byte(n >> 8), byte(n)}), port)
}

// processorTime is what this process has used: where others keep the processors busy, the time that passes
// says little.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func reportProcessorTime(b *testing.B, used time.Duration) {
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// benchWriter is one of pinned maps with n services.
func benchWriter(b *testing.B, n int) *Writer {
	b.Helper()
	_, dir := pinnedTables(b)
	w := openWriter(b, dir)
	_, err := w.Sync(b.Context(), benchServices(n, 0))
	require.NoError(b, err)
	return w
}

// BenchmarkUpsert gives a service two other backends of three, among n services.
func BenchmarkUpsert(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			w := benchWriter(b, n)
			s := benchServices(n, 0)[n/2]
			start := processorTime(b)
			for i := 0; b.Loop(); i++ {
				for j := range 2 {
					s.Backends[j].AddrPort = numbered(30, 2*i+j, 8080)
				}
				if _, err := w.Upsert(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
			reportProcessorTime(b, processorTime(b)-start)
		})
	}
}

// BenchmarkAddAndDelete adds a service with three backends, and deletes it, among n services.
func BenchmarkAddAndDelete(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			w := benchWriter(b, n)
			s := benchServices(n+1, 0)[n]
			for b.Loop() {
				if _, err := w.Upsert(b.Context(), s); err != nil {
					b.Fatal(err)
				}
				if _, err := w.Delete(b.Context(), s.Frontend); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSync writes 10,000 services with 3 backends each.
func BenchmarkSync(b *testing.B) {
	const n = 10000
	one, two := benchServices(n, 0), benchServices(n, 1)
	mixed := append(benchServices(n, 1)[:n/100], one[n/100:]...)
	sync := func(b *testing.B, w *Writer, wanted []Service) {
		if _, err := w.Sync(b.Context(), wanted); err != nil {
			b.Fatal(err)
		}
	}
	bench := func(name string, before, wanted []Service) {
		b.Run(name, func(b *testing.B) {
			w := benchWriter(b, 0)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				sync(b, w, before)
				start := processorTime(b)
				b.StartTimer()
				sync(b, w, wanted)
				used += processorTime(b) - start
			}
			reportProcessorTime(b, used)
		})
	}
	bench("all are added", nil, one)
	bench("all get other backends", one, two)
	bench("one of a hundred gets other backends", one, mixed)
	bench("nothing differs", one, one)
	bench("all are deleted", one, nil)
	b.Run("the maps are read first", func(b *testing.B) {
		w := benchWriter(b, n)
		start := processorTime(b)
		for b.Loop() {
			w.state = nil
			sync(b, w, one)
		}
		reportProcessorTime(b, processorTime(b)-start)
	})
}

// BenchmarkServices reads 10,000 services with 3 backends each.
func BenchmarkServices(b *testing.B) {
	w := benchWriter(b, 10000)
	for b.Loop() {
		if _, err := w.tables.Services(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
