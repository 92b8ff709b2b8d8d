// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/internal/probe"
)

// harness is a loaded collection of the programs in harness.c.
type harness struct {
	coll *ebpf.Collection
	runs uint64
}

// options says how a collection differs from the default one.
type options struct {
	programs  []string       // names without run_; nil: all
	constants map[string]any // load-time constants, by name without cfg_
	change    func(*ebpf.CollectionSpec)
}

// hashSize is the size of hash maps: their own make every test slow, which
// empties them, and LRU maps are allocated as they are created. It is enough for
// every test; nothing may be evicted.
const hashSize = 4096

func loadPrograms(o options) (*harness, error) {
	spec, err := loadHarness()
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		if m.Type == ebpf.LRUHash || m.Type == ebpf.Hash {
			m.MaxEntries = min(m.MaxEntries, hashSize)
		}
	}
	if o.change != nil {
		o.change(spec)
	}
	precise, err := probe.PreciseVerifier()
	if err != nil {
		return nil, err
	}
	constants := map[string]any{"imprecise_verifier": !precise}
	maps.Copy(constants, o.constants)
	for name, value := range constants {
		if err := spec.Variables["cfg_"+name].Set(value); err != nil {
			return nil, fmt.Errorf("setting cfg_%s: %w", name, err)
		}
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool {
		name = strings.TrimPrefix(name, "run_")
		return o.programs != nil && !slices.Contains(o.programs, name)
	})
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	return &harness{coll: coll}, nil
}

// load returns a collection of the test's own.
func load(t *testing.T, o options) *harness {
	t.Helper()
	h, err := loadPrograms(o)
	if err != nil {
		t.Fatalf("loading the programs: %+v", err)
	}
	t.Cleanup(h.close)
	return h
}

func (h *harness) close() { h.coll.Close() }

// What the programs return: see harness.c.
const (
	noSocket   = 0
	done       = 1
	doneBefore = 2
)

// run runs a program and returns what it has left in its output. Who calls it
// has filled the arguments of the function in.
func (h *harness) run(t *testing.T, program string, in harnessHarnessInput) harnessHarnessOutput {
	t.Helper()
	h.runs++
	in.Run = h.runs
	if err := h.coll.Variables["input"].Set(&in); err != nil {
		t.Fatalf("%s: writing its input: %v", program, err)
	}
	const ethernetHeader = 14
	ret, err := h.coll.Programs["run_"+program].Run(&ebpf.RunOptions{Data: make([]byte, ethernetHeader)})
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	if ret == noSocket {
		t.Fatalf("%s: the program has found no socket", program)
	}
	var out harnessHarnessOutput
	if err := h.coll.Variables["output"].Get(&out); err != nil {
		t.Fatalf("%s: reading its output: %v", program, err)
	}
	if ret != done && ret != doneBefore || out.Run != in.Run {
		t.Fatalf("%s: returned %d for run %d, the output is of run %d", program, ret, in.Run, out.Run)
	}
	return out
}

// m returns a map.
func (h *harness) m(name string) *ebpf.Map { return h.coll.Maps[name] }

type mode = harnessRevskMode

const (
	storage = harnessRevskModeREVSK_MODE_STORAGE
	dual    = harnessRevskModeREVSK_MODE_DUAL
	legacy  = harnessRevskModeREVSK_MODE_LEGACY
	mirror  = harnessRevskModeREVSK_MODE_MIRROR
)

func (h *harness) setMode(t *testing.T, m mode) { t.Helper(); h.setConfig(t, m, 0) }

func (h *harness) setConfig(t *testing.T, m mode, mark uint32) {
	t.Helper()
	must(t, h.m(harnessMapRevskConfig).Put(uint32(0), harnessRevskConfigValue{Mode: uint32(m), Mark: mark}))
}

// reset empties every map, for the next test.
func (h *harness) reset(t *testing.T) {
	t.Helper()
	for name, m := range h.coll.Maps {
		switch m.Type() {
		case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
			for key := range rawEntries(t, m) {
				if err := m.Delete([]byte(key)); err != nil {
					t.Fatalf("emptying %s: %v", name, err)
				}
			}
		case ebpf.PerCPUArray:
			zero := make([]uint64, ebpf.MustPossibleCPU())
			for i := range m.MaxEntries() {
				must(t, m.Put(i, zero))
			}
		}
	}
	h.setMode(t, storage)
}

// rawEntries returns the contents of a hash, byte by byte.
func rawEntries(t *testing.T, m *ebpf.Map) map[string]string {
	t.Helper()
	all := make(map[string]string)
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		all[string(key)] = string(value)
	}
	must(t, it.Err())
	return all
}

// counts are values of the counters, those that are 0 left out.
type counts map[harnessRevskMetric]int

const (
	stored          = harnessRevskMetricREVSK_STORED
	released        = harnessRevskMetricREVSK_RELEASED
	droppedDirect   = harnessRevskMetricREVSK_DROPPED_DIRECT
	droppedReplaced = harnessRevskMetricREVSK_DROPPED_REPLACED
	updated         = harnessRevskMetricREVSK_UPDATED
	evicted         = harnessRevskMetricREVSK_EVICTED
	hashNotWritten  = harnessRevskMetricREVSK_HASH_NOT_WRITTEN
	releaseZeroed   = harnessRevskMetricREVSK_RELEASE_ZEROED
)

var countNames = map[harnessRevskMetric]string{
	stored:          "stored",
	released:        "released",
	droppedDirect:   "dropped direct",
	droppedReplaced: "dropped replaced",
	updated:         "updated",
	evicted:         "evicted",
	hashNotWritten:  "not written to the hash",
	releaseZeroed:   "release zeroed",
}

func (c counts) String() string {
	var parts []string
	for _, metric := range slices.Sorted(maps.Keys(c)) {
		name, ok := countNames[metric]
		if !ok {
			name = fmt.Sprintf("counter %d", metric)
		}
		parts = append(parts, fmt.Sprintf("%s %d", name, c[metric]))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// counts returns the sums over all CPUs.
func (h *harness) counts(t *testing.T) counts {
	t.Helper()
	c := make(counts)
	for metric := range harnessRevskMetricREVSK_METRIC_COUNT {
		var perCPU []uint64
		must(t, h.m(harnessMapRevskMetrics).Lookup(uint32(metric), &perCPU))
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		if sum != 0 {
			c[metric] = int(sum)
		}
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tuple is what a struct revsk_tuple says, as a test writes it: without its age, which what is written
// beside it changes. IPv4 addresses are plain ones.
type tuple struct {
	peer, service   netip.AddrPort
	revNat          uint16
	flags           uint8
	backendID, time uint32
}

// at is t as another call makes it, at another time.
func (t tuple) at(time uint32) tuple {
	t.time = time
	return t
}

// overtaken is the tuple of a connect that another has overtaken (REVSK_TUPLE_OVERTAKEN).
func (t tuple) overtaken() tuple {
	t.flags |= 1 << 1
	return t
}

func (t tuple) String() string {
	s := fmt.Sprintf("%v for %v (index %d, backend %d, time %d)",
		t.peer, t.service, t.revNat, t.backendID, t.time)
	if t.flags != 0 {
		s += fmt.Sprintf(" flags %#x", t.flags)
	}
	return s
}

// net16 is a number in network byte order as it lies in a struct of the host.
func net16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func wireEndpoint(a netip.AddrPort) harnessHarnessEndpoint {
	var e harnessHarnessEndpoint
	e.Addr.Bytes = a.Addr().As16()
	e.Port = net16(a.Port())
	return e
}

func addrPort(addr [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), net16(port))
}

func (t tuple) wire() harnessRevskTuple {
	var w harnessRevskTuple
	w.Peer.Bytes, w.PeerPort = t.peer.Addr().As16(), net16(t.peer.Port())
	w.Service.Bytes, w.ServicePort = t.service.Addr().As16(), net16(t.service.Port())
	w.RevNatIndex = net16(t.revNat)
	w.Flags = t.flags
	w.BackendId, w.Time = t.backendID, t.time
	return w
}

func fromWire(w harnessRevskTuple) tuple {
	return tuple{
		peer:      addrPort(w.Peer.Bytes, w.PeerPort),
		service:   addrPort(w.Service.Bytes, w.ServicePort),
		revNat:    net16(w.RevNatIndex),
		flags:     w.Flags,
		backendID: w.BackendId,
		time:      w.Time,
	}
}

// errno is what a function that returns 0 or -errno has returned.
func errno(out harnessHarnessOutput) unix.Errno { return unix.Errno(-out.Result) }
