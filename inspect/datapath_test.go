// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/revsk/revsk/bpf/sock"
	"github.com/revsk/revsk/internal/sandbox"
	"github.com/revsk/revsk/lbmap"
)

// datapath is the real hooks, attached to a cgroup that this process is in until the test ends.
type datapath struct {
	Maps
	tables lbmap.Tables
	cgroup string
	links  []link.Link
}

// hooks are loaded once, which takes the kernel seconds, and attached anew by every test.
type hooks struct {
	coll  *ebpf.Collection
	types map[string]ebpf.AttachType // by the name of the program
}

var loadHooks = sync.OnceValues(func() (*hooks, error) {
	spec, err := sock.LoadSock()
	if err != nil {
		return nil, err
	}
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, "cilium_") {
			m.MaxEntries = min(m.MaxEntries, 1024)
		}
	}
	h := &hooks{types: make(map[string]ebpf.AttachType)}
	for name, prog := range spec.Programs {
		h.types[name] = prog.AttachType
	}
	if h.coll, err = ebpf.NewCollection(spec); err != nil {
		return nil, err
	}
	return h, nil
})

func newDatapath(t testing.TB) *datapath {
	t.Helper()
	h, err := loadHooks()
	require.NoError(t, err, "loading the hooks")
	maps := h.coll.Maps
	d := &datapath{
		Maps: MapsOf(func(name string) *ebpf.Map { return maps[name] }),
		tables: lbmap.Tables{
			Services4: maps[sock.SockMapCiliumLb4ServicesV2],
			Services6: maps[sock.SockMapCiliumLb6ServicesV2],
			Backends4: maps[sock.SockMapCiliumLb4BackendsV3],
			Backends6: maps[sock.SockMapCiliumLb6BackendsV3],
		},
	}
	t.Cleanup(func() { d.empty(t) })
	d.cgroup = enterCgroup(t)
	t.Cleanup(d.detach)
	d.attach(t)
	return d
}

func (d *datapath) attach(t testing.TB) {
	t.Helper()
	h, err := loadHooks()
	require.NoError(t, err, "loading the hooks")
	for name, attach := range h.types {
		l, err := link.AttachCgroup(link.CgroupOptions{
			Path: d.cgroup, Attach: attach, Program: h.coll.Programs[name],
		})
		require.NoError(t, err, "attaching %s", name)
		d.links = append(d.links, l)
	}
}

// empty removes the services.
func (d *datapath) empty(t testing.TB) {
	_, err := lbmap.NewWriter(&d.tables).Sync(context.Background(), nil)
	require.NoError(t, err)
}

// detach takes the hooks away, while sockets and maps stay. A link that is only closed may be open in another process that looks at
// all links just now, and is then detached later.
func (d *datapath) detach() {
	for _, l := range d.links {
		_ = l.Detach()
		l.Close()
	}
	d.links = nil
}

// enterCgroup moves this process into a new cgroup, and back when the test ends.
func enterCgroup(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(sandbox.Cgroup(), "inspect")
	require.NoError(t, os.Mkdir(dir, 0o755))
	// A process that the test has killed may take a moment to leave it.
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return os.Remove(dir) == nil }, time.Minute, time.Millisecond)
	})
	self := []byte(strconv.Itoa(os.Getpid()))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), self, 0))
	t.Cleanup(func() {
		require.NoError(t, os.WriteFile(filepath.Join(sandbox.Cgroup(), "cgroup.procs"), self, 0))
	})
	return dir
}

// service is a service with one backend, on the loopback address of its family.
type service struct {
	front, backend netip.AddrPort
	index          uint16
	backendID      uint32
}

// addService adds service number n, whose ports and ids follow from n.
func (d *datapath) addService(t testing.TB, n int, v6 bool, protocol lbmap.Protocol) service {
	t.Helper()
	front, back := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("127.0.0.1")
	if v6 {
		front, back = netip.MustParseAddr("fd96::1"), netip.MustParseAddr("::1")
	}
	return d.addServiceFor(t, n, front, netip.AddrPortFrom(back, uint16(20000+n)), protocol)
}

func (d *datapath) addServiceFor(
	t testing.TB, n int, front netip.Addr, backend netip.AddrPort, protocol lbmap.Protocol,
) service {
	t.Helper()
	s := service{
		front:     netip.AddrPortFrom(front, uint16(10000+n)),
		backend:   backend,
		index:     uint16(1 + n),
		backendID: uint32(1000 + n),
	}
	_, err := lbmap.NewWriter(&d.tables).Upsert(t.Context(), lbmap.Service{
		Frontend: lbmap.Frontend{AddrPort: s.front, Protocol: protocol},
		RevNat:   s.index,
		Backends: []lbmap.Backend{{ID: s.backendID, AddrPort: backend, Protocol: protocol}},
	})
	require.NoError(t, err)
	return s
}

// addServices adds n services, beginning with number first.
func (d *datapath) addServices(t testing.TB, first, n int, v6 bool) []service {
	t.Helper()
	var all []service
	for i := range n {
		all = append(all, d.addService(t, first+i, v6, lbmap.ProtocolUDP))
	}
	return slices.Clip(all)
}
