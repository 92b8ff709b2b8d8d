// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/mapdigest"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/migrate"
)

// survey is what a visit of all sockets has found.
type survey struct {
	at       time.Time
	duration time.Duration
	sockets  map[socketKind]int
	tuples   map[inspect.Role]int
	fill     []fill
	// Those with the most sockets, which have a series each.
	services []counted[serviceKey]
	backends []counted[inspect.Backend]
}

// counted is how many sockets are connected to something.
type counted[K any] struct {
	key K
	n   int
}

type socketKind struct {
	protocol lbmap.Protocol
	family   inspect.Family
}

type serviceKey struct {
	service  netip.AddrPort
	protocol lbmap.Protocol
}

// fill is how full a map is.
type fill struct {
	name          string
	entries, size uint64
}

// audit is what has become of the entries of the hash.
type audit struct {
	at       time.Time
	duration time.Duration
	plan     *migrate.Plan
}

// surveyor visits sockets, counts entries and judges them: what takes long, on a clock of its own.
type surveyor struct {
	a         *Agent
	nextAudit time.Time
	reader    *inspect.Reader          // nil: not opened
	readerOf  ebpf.MapID               // the map that it reads first
	used      time.Duration            // of a processor, by the last survey
	proxies   map[inspect.Backend]bool // those that no service had, as of the last survey
}

func newSurveyor(a *Agent) *surveyor { return &surveyor{a: a} }

func (s *surveyor) run(ctx context.Context) {
	defer s.close()
	runtime.LockOSThread() // of which the processor time is measured
	defer runtime.UnlockOSThread()
	for {
		begin := time.Now()
		s.a.beat(loopSurvey)
		opts := s.a.options()
		s.survey(ctx, opts)
		if opts.AuditEvery > 0 && !begin.Before(s.nextAudit) {
			s.nextAudit = begin.Add(opts.AuditEvery)
			if !s.audit(ctx, opts) {
				s.nextAudit = begin.Add(opts.SurveyEvery)
			}
		}
		if !s.pause(ctx, begin) {
			return
		}
	}
}

// processorTime is what this thread has used of a processor.
func processorTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// surveyRest is how many times longer than the processor time of a survey it takes until the next one: surveys are not to use
// more of a processor. But their figures are not to be older than longestRest.
const (
	surveyRest  = 2000
	longestRest = 20 * time.Minute
)

// pause waits until the next survey.
func (s *surveyor) pause(ctx context.Context, begin time.Time) bool {
	for {
		s.a.beat(loopSurvey)
		// The options may change meanwhile.
		left := time.Until(begin.Add(max(s.a.options().SurveyEvery, min(surveyRest*s.used, longestRest))))
		if left <= 0 {
			return ctx.Err() == nil
		}
		if sleep(ctx, min(left, 10*time.Second)) != nil {
			return false
		}
	}
}

func (s *surveyor) survey(ctx context.Context, opts Options) {
	begin, before := time.Now(), processorTime()
	found := survey{sockets: make(map[socketKind]int), tuples: make(map[inspect.Role]int)}
	var missing []inspect.Backend
	var err error
	found.fill, err = countEntries(ctx, opts.Loader.MapsDir)
	s.used = processorTime() - before
	if err == nil && !opts.AuditOnly {
		if missing, err = s.visit(ctx, opts, &found); errors.Is(err, loader.ErrNotLoaded) {
			err = nil
		}
	}
	if !s.a.outcome(stepSurvey, err) {
		s.used = 0 // there are no figures, so the next survey is not put off
		return
	}
	found.at, found.duration = time.Now(), time.Since(begin)
	s.a.update(func(v *view) { v.backends.missing, v.survey = missing, &found })
}

// beatEvery is after how many sockets the surveyor shows that it is alive.
const beatEvery = 100_000

// visit visits all sockets that hold something, and returns the backends of their connections that are not in the maps.
func (s *surveyor) visit(ctx context.Context, opts Options, found *survey) ([]inspect.Backend, error) {
	dp, err := loader.Open(opts.Loader)
	if err != nil {
		return nil, err
	}
	defer dp.Close()
	if err := s.open(dp.InspectMaps()); err != nil {
		return nil, err
	}
	before := processorTime() // what is opened is opened once
	defer func() { s.used += processorTime() - before }()
	present := s.a.presentBackends()
	services, backends := make(map[serviceKey]int), make(map[inspect.Backend]int)
	var suspects []inspect.Backend // those that seem to be gone
	seen := 0
	for socket, err := range s.reader.Sockets(ctx, inspect.Filter{}) {
		if err != nil {
			return nil, err
		}
		if seen++; seen%beatEvery == 0 {
			s.a.beat(loopSurvey)
		}
		found.sockets[socketKind{socket.Protocol, socket.Family}]++
		for role := range socket.Tuples() {
			found.tuples[role]++
		}
		c := socket.Connection()
		if c == nil {
			continue
		}
		b := inspect.Backend{AddrPort: c.Peer, Protocol: socket.Protocol}
		services[serviceKey{c.Service, socket.Protocol}]++
		if backends[b]++; backends[b] == 1 && !present.has(b) {
			suspects = append(suspects, b)
		}
	}
	found.services, found.backends = largest(services, opts.Services), largest(backends, opts.Backends)
	return s.missing(ctx, opts, suspects)
}

// surveyBuffer is the size of the buffer of the reader: every so many bytes of sockets cost a pass over all of them.
const surveyBuffer = 4 << 20

// open opens a reader, unless the one that there is reads these maps: its programs are loaded once.
func (s *surveyor) open(maps inspect.Maps) error {
	info, err := maps.Conn.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	if s.reader != nil && s.readerOf == id {
		return nil
	}
	s.close()
	s.reader, err = inspect.Open(maps, inspect.Options{SkipOwners: true, BufferSize: surveyBuffer})
	s.readerOf = id
	return err
}

func (s *surveyor) close() {
	if s.reader != nil {
		s.reader.Close()
		s.reader = nil
	}
}

// missing are the backends of sockets that the maps do not have.
func (s *surveyor) missing(ctx context.Context, opts Options, suspects []inspect.Backend) ([]inspect.Backend, error) {
	if len(suspects) == 0 || opts.Termination.Protocols == TerminateOff {
		return nil, nil
	}
	tables, err := lbmap.OpenTables(opts.Loader.MapsDir)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer tables.Close()
	suspects = slices.DeleteFunc(suspects, func(b inspect.Backend) bool { return lacksFamily(tables, b) })
	gone, err := inspect.GoneBackends(ctx, suspects, tables)
	gone = s.withoutNewProxies(gone)
	if errors.Is(err, inspect.ErrNoBackends) {
		return nil, nil
	}
	if err != nil || len(opts.Termination.States) == 0 {
		return gone, err
	}
	all, err := readBackends(ctx, tables, nil)
	if err != nil {
		return nil, err
	}
	usable, err := readBackends(ctx, tables, opts.Termination.States)
	for _, b := range suspects {
		if all.has(b) && !usable.has(b) {
			gone = append(gone, b)
		}
	}
	return gone, err
}

// withoutNewProxies leaves out what may be the L7 proxy of a service, unless the last survey has found no such service either. That
// such a service is back, the backend maps would not say.
func (s *surveyor) withoutNewProxies(gone []inspect.Backend) []inspect.Backend {
	before := s.proxies
	s.proxies = make(map[inspect.Backend]bool)
	return slices.DeleteFunc(gone, func(b inspect.Backend) bool {
		if at := b.AddrPort.Addr(); at != localhost4 && at != netip.IPv6Loopback() {
			return false
		}
		s.proxies[b] = true
		return !before[b]
	})
}

var localhost4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// countedMaps are the maps whose fill is of interest to operators.
var countedMaps = []string{
	lbmap.ReverseSK4Map, lbmap.ReverseSK6Map, lbmap.Services4Map, lbmap.Services6Map, lbmap.Backends4Map, lbmap.Backends6Map,
	lbmap.RevNat4Map, lbmap.RevNat6Map, lbmap.Affinity4Map, lbmap.Affinity6Map,
}

func countEntries(ctx context.Context, dir string) (all []fill, err error) {
	for _, name := range countedMaps {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil, err
		}
		n, err := mapdigest.Count(ctx, m)
		size := m.MaxEntries()
		m.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, fill{name, n, uint64(size)})
	}
	return all, nil
}

// audit judges the entries of the hash. Where no map is, there is nothing to judge.
func (s *surveyor) audit(ctx context.Context, opts Options) bool {
	begin := time.Now()
	opts.Loader.Logger = s.a.warnings()
	plan, err := migrate.MakePlan(ctx, migrate.PlanOptions{
		Loader: opts.Loader, To: opts.To, Logger: opts.Loader.Logger,
		Progress: func(migrate.Progress) { s.a.beat(loopSurvey) },
	})
	if !opts.AuditOnly && (isMissing(err) || errors.Is(err, migrate.ErrNoHash)) {
		return false // not loaded yet
	}
	if !s.a.outcome(stepAudit, err) {
		return false
	}
	s.a.update(func(v *view) { v.audit = &audit{time.Now(), time.Since(begin), plan} })
	if opts.AuditOnly {
		s.a.happen(Audited{plan})
	}
	return true
}
