// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/revsk/revsk/lbmap"
)

// memory is what the kernel needs for many sockets of one variant.
type memory struct {
	Variant string `json:"variant"`
	Sockets int    `json:"sockets"`
	Sends   bool   `json:"unconnected"` // sockets that have sent, instead of connected ones
	// PerSocket is how many bytes of slab memory a socket took beyond one of the floor.
	PerSocket float64 `json:"slab_bytes_per_socket"`
	// Caches are the slab caches that grew by at least a tenth of an object per socket beyond the
	// floor, in objects per socket.
	Caches map[string]float64 `json:"slab_objects_per_socket"`
	// Maps is what the maps took before the first socket, in bytes, by name.
	Maps map[string]uint64 `json:"map_bytes"`
	// Percpu is by how many bytes the kernel's per-CPU memory grew.
	Percpu int64 `json:"percpu_bytes"`
	// CloseCPU is the CPU time per socket, in nanoseconds, that the kernel took to close them all when
	// their processes were killed; Close the time until the processes were gone, and Freed until
	// the slab memory was free again, in seconds.
	CloseCPU float64 `json:"close_cpu_ns_per_socket"`
	Close    float64 `json:"close_seconds"`
	Freed    float64 `json:"freed_seconds,omitempty"`
}

const (
	memorySockets = 100000
	// freedPatience is how long is waited for slab memory to be free again; other programs of the
	// machine may have taken it meanwhile.
	freedPatience = 5 * time.Second
)

func benchMemory(ctx context.Context, b *bench) error {
	for _, sends := range []bool{false, true} {
		var base *slabs
		for _, v := range b.variants {
			// An empty hash and a full one take the same memory, and dual and mirror have the storage's too.
			if v.name == legacyEmpty || v.name == dual || v.name == mirror {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			m, grown, err := v.memory(sends)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			if base == nil { // the floor is the first
				base = grown
			}
			m.compare(grown, base)
			b.report.Memory = append(b.report.Memory, m)
		}
	}
	return nil
}

func (v *variant) memory(sends bool) (memory, *slabs, error) {
	m := memory{Variant: v.name, Sockets: memorySockets, Sends: sends}
	if v.dp != nil {
		m.Maps = make(map[string]uint64)
		for _, name := range []string{"revsk_conn", "revsk_peers", lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
			n, err := mapMemory(v.dp.Map(name))
			if err != nil {
				return m, nil, err
			}
			m.Maps[name] = n
		}
		if err := v.prepare(ipv4, 0); err != nil {
			return m, nil, err
		}
	}
	runtime.GC()
	before, err := readSlabs()
	if err != nil {
		return m, nil, err
	}
	hs, err := v.hold(memorySockets, sends)
	if err != nil {
		return m, nil, err
	}
	during, err := readSlabs()
	if err != nil {
		return m, nil, err
	}
	m.Percpu = during.percpu - before.percpu
	start := time.Now()
	wall, cpu, err := hs.killTimed()
	if err != nil {
		return m, nil, err
	}
	m.Close, m.CloseCPU = wall.Seconds(), float64(cpu)/memorySockets
	grown := during.minus(before)
	// Sockets and storage are freed after a grace period of RCU, and what follows from that.
	for time.Since(start) < freedPatience {
		now, err := readSlabs()
		if err != nil {
			return m, nil, err
		}
		if now.minus(before).bytes() < grown.bytes()/20 {
			m.Freed = time.Since(start).Seconds()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return m, grown, nil
}

func (m *memory) compare(grown, base *slabs) {
	m.Caches = make(map[string]float64)
	more := grown.minus(base)
	for name, c := range more.caches {
		perSocket := float64(c.objects) / memorySockets
		// Storage is from kmalloc; other caches grow with what other programs do.
		if strings.HasPrefix(name, "kmalloc") && perSocket > 0.1 {
			m.Caches[name] = perSocket
			m.PerSocket += perSocket * float64(c.size)
		}
	}
}

func mapMemory(m *ebpf.Map) (uint64, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	n, _ := info.Memlock()
	return n, nil
}

// slabs are the kernel's slab caches.
type slabs struct {
	caches map[string]slab
	percpu int64
}

type slab struct{ objects, size int64 }

func readSlabs() (*slabs, error) {
	f, err := os.Open("/proc/slabinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := &slabs{caches: make(map[string]slab)}
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 4 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		objects, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue // the line with the version
		}
		size, err := strconv.ParseInt(fields[3], 10, 64)
		if err != nil {
			return nil, err
		}
		all.caches[fields[0]] = slab{objects, size}
	}
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); fields[0] == "Percpu:" {
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return nil, err
			}
			all.percpu = kb * 1024
		}
	}
	return all, nil
}

func (s *slabs) minus(t *slabs) *slabs {
	d := &slabs{caches: make(map[string]slab), percpu: s.percpu - t.percpu}
	for name, c := range s.caches {
		d.caches[name] = slab{c.objects - t.caches[name].objects, c.size}
	}
	return d
}

func (s *slabs) bytes() int64 {
	var n int64
	for _, c := range s.caches {
		n += c.objects * c.size
	}
	return n
}
