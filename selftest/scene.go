// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/loader"
	"github.com/revsk/revsk/revnat"
)

// datapath is one whose maps are counted.
type datapath struct {
	*loader.Datapath
	mode     loader.Mode
	opts     loader.Options
	dir      string
	nextPort uint16
	writer   *lbmap.Writer
}

// startDatapath loads one with maps of its own, in a new directory of the BPF file system.
func startDatapath(ctx context.Context, opts Options, small bool) (_ *datapath, err error) {
	dir, err := os.MkdirTemp(opts.BPFFS, "selftest-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for maps: %w", err)
	}
	mode := loader.ModeLegacy
	dp := &datapath{mode: mode, dir: dir, nextPort: 1, opts: loader.Options{
		Cgroup:  opts.Cgroup,
		MapsDir: filepath.Join(dir, "maps"),
		PinsDir: filepath.Join(dir, "revsk"),
		Mode:    &mode,
		Logger:  opts.Logger,
		// An LRU hash hands out its entries to the CPUs by the 128.
		LegacyMaxEntries: 65536,
	}}
	if small {
		dp.opts.LegacyMaxEntries = smallHash
	}
	dp.Datapath, err = loader.Load(ctx, dp.opts)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if dp.writer, err = lbmap.OpenWriter(dp.opts.MapsDir); err != nil {
		return nil, errors.Join(err, dp.remove())
	}
	// Finds out whether sockets can be counted.
	if _, err := dp.countStorage(ctx, nil); err != nil {
		return nil, errors.Join(err, dp.remove())
	}
	return dp, nil
}

// remove works after the context has ended too.
func (dp *datapath) remove() error {
	return errors.Join(
		dp.writer.Close(),
		dp.Close(),
		loader.Unload(context.Background(), dp.opts, true),
		os.RemoveAll(dp.dir),
	)
}

// setMode leaves in the hash what has leaked there.
func (dp *datapath) setMode(ctx context.Context, mode loader.Mode) error {
	const force = true
	dp.mode = mode
	return dp.SetMode(ctx, mode, force)
}

func (dp *datapath) column() column {
	if dp.mode == loader.ModeLegacy {
		return legacyColumn
	}
	return storageColumn
}

// count returns how many entries the hash holds, or how many tuples the sockets, of the services.
func (dp *datapath) count(ctx context.Context, services map[netip.AddrPort]bool) (int, error) {
	if dp.mode == loader.ModeLegacy {
		return dp.countHash(services)
	}
	return dp.countStorage(ctx, services)
}

func (dp *datapath) countStorage(ctx context.Context, services map[netip.AddrPort]bool) (int, error) {
	sockets, err := inspect.Sockets(ctx, dp.InspectMaps(), inspect.Options{SkipOwners: true})
	if err != nil {
		return 0, fmt.Errorf("walking the storage: %w", err)
	}
	n := 0
	for _, s := range sockets {
		for _, t := range []*revnat.Tuple{s.Conn, s.Former} {
			if t != nil && services[t.Service] {
				n++
			}
		}
		for _, t := range s.Peers {
			if services[t.Service] {
				n++
			}
		}
	}
	return n, nil
}

func (dp *datapath) countHash(services map[netip.AddrPort]bool) (int, error) {
	n := 0
	for _, m := range []*ebpf.Map{dp.Map(lbmap.ReverseSK4Map), dp.Map(lbmap.ReverseSK6Map)} {
		var key lbmap.ReverseSKKey
		var value lbmap.ReverseSKValue
		it := m.Iterate()
		for it.Next(&key, &value) {
			if services[value.Service] {
				n++
			}
		}
		if err := it.Err(); err != nil {
			return 0, fmt.Errorf("reading the hash: %w", err)
		}
	}
	return n, nil
}

func (dp *datapath) zeroed() (uint64, error) {
	counters, err := dp.Counters()
	return counters.ReleaseZeroed, err
}

// scene is a case that is being run under one mode.
type scene struct {
	*datapath
	*network
	flavor
	want   expectation
	result *Case

	services map[netip.AddrPort]bool
	clients  []*client
	live     *Live
}

func (s *scene) cell() *Cell {
	if s.mode == loader.ModeLegacy {
		return &s.result.Legacy
	}
	return &s.result.Storage.Cell
}

func (c *Cell) setAfter(n int) {
	c.After = n
	c.Cleaned = c.Before > 0 && n == 0
}

// play runs the case and fills its cell. It returns false if the case could not be carried through,
// which the cell then says, and an error if no further case should be tried.
func (s *scene) play(ctx context.Context, t testCase) (ok bool, err error) {
	zeroed, err := s.zeroed()
	if err != nil {
		return false, err
	}
	s.services = make(map[netip.AddrPort]bool)
	err = s.run(ctx, t)
	err = errors.Join(err, s.closeClients())
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if missing := new(notSupportedError); errors.As(err, missing) {
		s.result.NotSupported = string(*missing)
		s.result.Legacy, s.result.Storage = Cell{}, StorageCell{}
		return false, nil
	}
	if err != nil {
		s.cell().Error = err.Error()
		return false, nil
	}
	zeroedNow, err := s.zeroed()
	if err != nil {
		return false, err
	}
	s.result.Storage.Zeroed = zeroedNow != zeroed
	return true, nil
}

func (s *scene) run(ctx context.Context, t testCase) error {
	if s.needsIPv6() && s.noIPv6 != nil {
		return s.noIPv6
	}
	if err := t.run(ctx, s); err != nil {
		return err
	}
	s.cell().Live = s.live
	return s.settle(ctx)
}

// measure counts what is there before the sockets end.
func (s *scene) measure(ctx context.Context) error {
	before, err := s.count(ctx, s.services)
	if err != nil {
		return err
	}
	s.cell().Before = before
	return nil
}

// How long what should be gone may take to be. The release hook has run when close returns, but the
// kernel frees a socket with its storage later: a TCP socket when its connection has ended.
const (
	settleTime = 3 * time.Second
	settleStep = 5 * time.Millisecond
)

// settle counts what is left, until it is what should be left.
func (s *scene) settle(ctx context.Context) error {
	deadline := time.Now().Add(settleTime)
	for {
		after, err := s.count(ctx, s.services)
		if err != nil {
			return err
		}
		s.cell().setAfter(after)
		if after <= s.want.after || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-time.After(settleStep):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// backend is one of the two of a protocol, of the case's family.
func (s *scene) backend(i int) netip.AddrPort {
	if s.v6 {
		return netip.AddrPortFrom(backends6[i], backendPort)
	}
	return netip.AddrPortFrom(backends4[i], backendPort)
}

// addService makes a service that no other case has, with one backend.
func (s *scene) addService(ctx context.Context, protocol, backend int) (netip.AddrPort, error) {
	addr := service4
	if s.v6 {
		addr = service6
	}
	service := netip.AddrPortFrom(addr, s.nextPort)
	s.nextPort++
	proto := lbmap.ProtocolUDP
	if protocol == unix.IPPROTO_TCP {
		proto = lbmap.ProtocolTCP
	}
	_, err := s.writer.Upsert(ctx, lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: service, Protocol: proto},
		Backends: []lbmap.Backend{{AddrPort: s.backend(backend), Protocol: proto}},
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("adding service %v: %w", service, err)
	}
	s.services[service] = true
	return service, nil
}

func (s *scene) open(n flavor) (*client, error) {
	c, err := newClient(n)
	if err == nil {
		s.clients = append(s.clients, c)
	}
	return c, err
}

// connect opens a socket and connects it to a service.
func (s *scene) connect(n flavor, service netip.AddrPort) (*client, error) {
	c, err := dial(n, service)
	if err == nil {
		s.clients = append(s.clients, c)
	}
	return c, err
}

// closeClients closes what the case has not closed.
func (s *scene) closeClients() error {
	var errs []error
	for _, c := range s.clients {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
