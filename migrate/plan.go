// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/internal/byteorder"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
)

// Plan says what a migration would do with the entries of the hash, and how healthy the hash is.
type Plan struct {
	Engine Engine
	// To is the mode in which it would end.
	To loader.Mode
	// Counts are by what would become of the entries now.
	Counts
	// Live are the entries that sockets still need, by kind of socket, sorted.
	Live []LiveCount
	// Maps are the legacy maps.
	Maps []MapFill
	// WithoutEntry are sockets that are connected to a backend of a service and have no entry for it, as two looks have found:
	// connected to the backend itself, or evicted from the hash; sorted by number. With EngineIter sockets without a cookie are
	// left out: these never had an entry.
	WithoutEntry []BackendCount
	// Leaks are the services of the leaked entries, sorted by number.
	Leaks []ServiceCount
	Steps []Step
}

// LiveCount is a number of entries.
type LiveCount struct {
	Protocol lbmap.Protocol
	// Family of the socket, 4 or 6. An IPv6 socket may have IPv4 entries.
	Family int
	// Connected: the socket is connected to the backend of the entry.
	Connected bool
	Entries   int
}

// MapFill says how full a map is.
type MapFill struct {
	Name                string
	Entries, MaxEntries int
}

// BackendCount is a number of sockets.
type BackendCount struct {
	Backend  netip.AddrPort
	Protocol lbmap.Protocol
	Sockets  int
}

// ServiceCount is a number of entries.
type ServiceCount struct {
	Service netip.AddrPort
	RevNat  uint16
	Entries int
}

// WithoutEntrySum is the number of sockets in WithoutEntry.
func (p *Plan) WithoutEntrySum() int {
	n := 0
	for _, b := range p.WithoutEntry {
		n += b.Sockets
	}
	return n
}

// MakePlan finds out what a migration would do. It changes nothing and needs no datapath of revsk's, only
// the pinned maps of a load balancer. The node goes on meanwhile, so numbers are of no single moment.
//
// Returns an error wrapping [ErrNoHash], [ErrLayout], [ErrEngine], [ErrProcesses] or [lbmap.ErrNoMap].
func MakePlan(ctx context.Context, opts PlanOptions) (*Plan, error) {
	if err := errors.Join(checkTarget(opts.To), checkLoader(&opts.Loader)); err != nil {
		return nil, err
	}
	engine, err := opts.Engine.choose(true)
	if err != nil {
		return nil, err
	}
	svcs, list, err := openServices(ctx, opts.Loader.MapsDir)
	if err != nil {
		return nil, err
	}
	source, err := openHash(opts.Loader.MapsDir)
	if err != nil {
		return nil, err
	}
	defer source.close()
	w := newWorker(opts.Progress, nil, opts.Logger)
	if err := checkProcesses(w.log); err != nil {
		return nil, err
	}
	// What sockets hold already, if a datapath is loaded.
	dp, err := loader.Open(opts.Loader)
	if err != nil && !errors.Is(err, loader.ErrNotLoaded) {
		return nil, err
	}
	if err == nil {
		defer dp.Close()
	}
	l := looker{engine: engine, mayChange: opts.Engine != EngineIter, backends: backendsOf(list), hash: source}
	agent, err := usedByAgent(dp, opts.Loader)
	if err != nil {
		return nil, err
	}
	plan := &Plan{To: target(opts.To, agent)}
	var entries []*entry
	err = w.do(stepSnapshot, func() error {
		stale := svcs.cached()
		return source.each(func(key hashKey, value hashValue) {
			entries = append(entries, &entry{key: key, value: value, stale: stale.stale(value)})
		})
	})
	if err != nil {
		return nil, err
	}
	if dp != nil {
		if err := w.do(stepList, func() error { return markPresent(ctx, dp, entries) }); err != nil {
			return nil, err
		}
	}
	if err := w.do(stepVisit, func() error { return l.look(ctx, entries) }); err != nil {
		return nil, err
	}
	plan.Engine, plan.Counts, plan.Steps = l.engine, countResults(entries), w.steps
	plan.Live, plan.Leaks = liveCounts(entries), leakCounts(entries)
	plan.WithoutEntry = backendCounts(l.withoutEntry)
	n4 := 0
	for _, e := range entries {
		if e.key.is4() {
			n4++
		}
	}
	plan.Maps = mapFills(source.maps(), n4, len(entries)-n4)
	return plan, nil
}

// markPresent finds out which entries are on their sockets, and not outdated by the hash: of tuples up to the mark it
// knows better if it names another service than each of the socket's tuples for that peer.
func markPresent(ctx context.Context, dp *loader.Datapath, entries []*entry) error {
	var config sock.SockRevskConfigValue
	if err := dp.Map(sock.SockMapRevskConfig).Lookup(uint32(0), &config); err != nil {
		return fmt.Errorf("reading the mark: %w", err)
	}
	reader, err := inspect.Open(dp.InspectMaps(), inspect.Options{SkipOwners: true, Reuse: true})
	if err != nil {
		return err
	}
	defer reader.Close()
	x := bySocket(entries)
	for s, err := range reader.Sockets(ctx, inspect.Filter{}) {
		if err != nil {
			return err
		}
		for _, t := range s.Tuples() {
			key, value := ofTuple(s.Cookie, t)
			if e := x.find(&key); e != nil && (config.Mark == 0 || e.value == value) {
				e.held = true
			}
		}
	}
	return nil
}

// usedByAgent tells whether another agent uses the hash: its programs run, or ours in their place. dp is nil if nothing is
// loaded.
func usedByAgent(dp *loader.Datapath, opts loader.Options) (bool, error) {
	if dp != nil {
		hooks, err := dp.Hooks()
		if err != nil || isTakenOver(hooks) {
			return err == nil, err
		}
	}
	runs, err := loader.AgentRuns(opts)
	if errors.Is(err, loader.ErrPermission) {
		return false, nil // an audit can do without
	}
	return runs, err
}

// backendsOf are the backends of services that sockets of the services' protocol may be connected to.
func backendsOf(list []lbmap.Service) []backendKey {
	all := make(map[backendKey]bool)
	for _, svc := range list {
		protocols := []lbmap.Protocol{svc.Frontend.Protocol}
		if svc.Frontend.Protocol == lbmap.ProtocolAny {
			protocols = []lbmap.Protocol{lbmap.ProtocolTCP, lbmap.ProtocolUDP}
		}
		for _, b := range svc.Backends {
			for _, protocol := range protocols {
				if b.AddrPort.IsValid() {
					all[backendKey{b.AddrPort, protocol}] = true
				}
			}
		}
	}
	return slices.Collect(maps.Keys(all))
}

func liveCounts(entries []*entry) []LiveCount {
	counts := make(map[LiveCount]int)
	for _, e := range entries {
		if e.result != ResultConn && e.result != ResultPeers {
			continue
		}
		kind := LiveCount{Protocol: e.protocol, Family: 4, Connected: e.result == ResultConn}
		if e.family == unix.AF_INET6 {
			kind.Family = 6
		}
		counts[kind]++
	}
	var all []LiveCount
	for kind, n := range counts {
		kind.Entries = n
		all = append(all, kind)
	}
	slices.SortFunc(all, func(a, b LiveCount) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Family, b.Family),
			-cmp.Compare(fmt.Sprint(a.Connected), fmt.Sprint(b.Connected)))
	})
	return all
}

func leakCounts(entries []*entry) []ServiceCount {
	counts := make(map[hashValue]int)
	for _, e := range entries {
		if e.result == ResultLeaked {
			counts[e.value]++
		}
	}
	var all []ServiceCount
	for v, n := range counts {
		all = append(all, ServiceCount{v.service(), byteorder.Net16(v.RevNat), n})
	}
	slices.SortFunc(all, func(a, b ServiceCount) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), a.Service.Compare(b.Service), cmp.Compare(a.RevNat, b.RevNat))
	})
	return all
}

func backendCounts(counts map[backendKey]int) []BackendCount {
	var all []BackendCount
	for b, n := range counts {
		all = append(all, BackendCount{b.addr, b.protocol, n})
	}
	slices.SortFunc(all, func(a, b BackendCount) int {
		return cmp.Or(cmp.Compare(b.Sockets, a.Sockets), a.Backend.Compare(b.Backend), cmp.Compare(a.Protocol, b.Protocol))
	})
	return all
}

// mapFills says how full maps are, with n4 IPv4 and n6 IPv6 entries.
func mapFills(maps map[string]*ebpf.Map, n4, n6 int) []MapFill {
	var all []MapFill
	for name, m := range maps {
		fill := MapFill{Name: name, Entries: n6, MaxEntries: int(m.MaxEntries())}
		if name == lbmap.ReverseSK4Map {
			fill.Entries = n4
		}
		all = append(all, fill)
	}
	slices.SortFunc(all, func(a, b MapFill) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
