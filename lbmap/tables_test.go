// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newTables creates real maps. entries overrides the number of entries of the
// named maps.
func newTables(t testing.TB, entries map[string]uint32) *Tables {
	t.Helper()
	tables := &Tables{}
	for name, field := range tables.fields() {
		*field = newMap(t, name, entries[name])
	}
	t.Cleanup(func() { require.NoError(t, tables.Close()) })
	return tables
}

func newMap(t testing.TB, name string, entries uint32) *ebpf.Map {
	t.Helper()
	spec := MapSpec(name)
	spec.Name = "" // too long for the kernel
	if entries != 0 {
		spec.MaxEntries = entries
	}
	return makeMap(t, spec)
}

func makeMap(t testing.TB, spec *ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	// Linux before 5.11 counts maps as locked memory.
	require.NoError(t, rlimit.RemoveMemlock(), "these tests need CAP_BPF")
	m, err := ebpf.NewMap(spec)
	require.NoError(t, err, "these tests need CAP_BPF")
	return m
}

// contents returns every entry of every map, as bytes.
func contents(t *testing.T, tables *Tables) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for name, field := range tables.fields() {
		var key, value []byte
		if *field == nil {
			continue
		}
		it := (*field).Iterate()
		for it.Next(&key, &value) {
			all[fmt.Sprintf("%s %x", name, key)] = fmt.Sprintf("%x", value)
		}
		require.NoError(t, it.Err())
	}
	return all
}

func frontend(t testing.TB, s string) Frontend {
	t.Helper()
	f, err := ParseFrontend(s)
	require.NoError(t, err)
	return f
}

func backends(addrs ...string) []Backend {
	var all []Backend
	for _, a := range addrs {
		all = append(all, Backend{AddrPort: addrPort(a), Protocol: ProtocolTCP})
	}
	return all
}

func upsert(t testing.TB, tables *Tables, s Service) Service {
	t.Helper()
	written, err := NewWriter(tables).Upsert(t.Context(), s)
	require.NoError(t, err)
	return written.Service
}

func deleteService(t testing.TB, tables *Tables, f Frontend) error {
	t.Helper()
	_, err := NewWriter(tables).Delete(t.Context(), f)
	return err
}

// backendIDs returns the keys of the backend map of a family.
func backendIDs(t *testing.T, m *ebpf.Map) []uint32 {
	t.Helper()
	name := Backends4Map
	if m.ValueSize() == BackendValue6Size {
		name = Backends6Map
	}
	var ids []uint32
	require.NoError(t, readAll(name, m, func(id backendID, _ BackendValue) { ids = append(ids, uint32(id)) }))
	return ids
}

func TestServiceIsSpreadOverItsEntries(t *testing.T) {
	for _, c := range []struct{ name, service, first, second string }{
		{"IPv4", "10.0.0.1:80/tcp", "10.1.0.1:8080", "10.1.0.2:8080"},
		{"IPv6", "[fd00::1]:80/tcp", "[fd01::1]:8080", "[fd01::2]:8080"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := newTables(t, nil)
			f := frontend(t, c.service)
			maps := tables.family(f.AddrPort.Addr().Is6())
			s := upsert(t, tables, Service{
				Frontend: f, Flags: FlagLoadBalancer | FlagAffinity | FlagSourceRange | FlagSourceRangeDeny,
				AffinityTimeout: 3 * time.Hour, Algorithm: AlgorithmMaglev,
				Backends: []Backend{
					{AddrPort: addrPort(c.first), Protocol: ProtocolTCP, Quarantined: true},
					{AddrPort: addrPort(c.second), Protocol: ProtocolTCP, ClusterID: 3, Zone: 7},
				},
			})
			assert.Equal(t, uint16(1), s.RevNat)
			require.Len(t, s.Backends, 2)
			assert.Equal(t, addrPort(c.second), s.Backends[0].AddrPort, "quarantined backends come last")

			var v ServiceValue
			require.NoError(t, maps.services.Lookup(serviceKey(f, 0), &v))
			assert.Equal(t, ServiceValue{
				Union: 10800 | 2<<24, Count: 1, QCount: 1, RevNat: 1, Flags: s.Flags,
			}, v)
			require.NoError(t, maps.services.Lookup(serviceKey(f, 1), &v))
			assert.Equal(t, ServiceValue{
				Union: s.Backends[0].ID, RevNat: 1, Flags: FlagLoadBalancer | FlagAffinity,
			}, v)
			require.NoError(t, maps.services.Lookup(serviceKey(f, 2), &v))
			assert.Equal(t, ServiceValue{
				Union: s.Backends[1].ID, RevNat: 1, Flags: FlagLoadBalancer | FlagAffinity | FlagQuarantined,
			}, v)
			require.ErrorIs(t, maps.services.Lookup(serviceKey(f, 3), &v), ebpf.ErrKeyNotExist)

			var b BackendValue
			require.NoError(t, maps.backends.Lookup(s.Backends[0].ID, &b))
			assert.Equal(t, BackendValue{addrPort(c.second), ProtocolTCP, BackendActive, 3, 7}, b)

			var r RevNatValue
			require.NoError(t, maps.revNat.Lookup(RevNatKey(1), &r))
			assert.Equal(t, RevNatValue{f.AddrPort}, r)

			matches, err := tables.AffinityMatches()
			require.NoError(t, err)
			assert.Equal(t, []AffinityMatchKey{{s.Backends[0].ID, 1}}, matches,
				"clients do not keep a quarantined backend")

			all, err := tables.Services(t.Context())
			require.NoError(t, err)
			assert.Equal(t, []Service{s}, all)

			require.NoError(t, deleteService(t, tables, f))
			assert.Empty(t, contents(t, tables))
		})
	}
}

func TestServicesAreSortedAndReadBackAsWritten(t *testing.T) {
	tables := newTables(t, nil)
	want := []Service{
		{Frontend: frontend(t, "10.0.0.1:53/tcp"), Backends: backends("10.1.0.1:53", "10.1.0.2:53")},
		{Frontend: frontend(t, "10.0.0.1:53/udp"), Backends: backends("10.1.0.1:53")},
		{Frontend: frontend(t, "10.0.0.2:80/tcp"), Flags: FlagTwoScopes, Backends: backends("10.1.0.3:80")},
		{Frontend: frontend(t, "10.0.0.2:80/tcp/internal"), Flags: FlagTwoScopes, Backends: backends("10.1.0.1:80")},
		{Frontend: frontend(t, "10.0.0.3:443/tcp"), Flags: FlagL7LoadBalancer, L7ProxyPort: 10000},
		{Frontend: frontend(t, "[fd00::1]:0/any")},
		{Frontend: frontend(t, "[fd00::2]:80/udplite"), RevNat: 500, Backends: backends("[fd01::1]:80")},
	}
	for i := range want {
		// From the last to the first, so that sorting has something to do.
		j := len(want) - 1 - i
		want[j] = upsert(t, tables, want[j])
	}
	got, err := tables.Services(t.Context())
	require.NoError(t, err)
	assert.Equal(t, want, got)

	one, err := tables.Service(t.Context(), want[3].Frontend)
	require.NoError(t, err)
	assert.Equal(t, want[3], one)
	_, err = tables.Service(t.Context(), frontend(t, "10.0.0.9:1/tcp"))
	require.ErrorIs(t, err, ErrNotFound)

	// Writing what has been read changes nothing.
	before := contents(t, tables)
	for _, s := range got {
		assert.Equal(t, s, upsert(t, tables, s))
	}
	assert.Equal(t, before, contents(t, tables))

	for _, s := range want {
		require.NoError(t, deleteService(t, tables, s.Frontend))
	}
	assert.Empty(t, contents(t, tables))
}

func TestReverseNATIndexIsTheLowestFreeOneOfBothFamilies(t *testing.T) {
	tables := newTables(t, nil)
	index := func(s string, want uint16) uint16 {
		return upsert(t, tables, Service{Frontend: frontend(t, s), RevNat: want}).RevNat
	}
	assert.Equal(t, uint16(1), index("10.0.0.1:80/tcp", 0))
	assert.Equal(t, uint16(2), index("[fd00::1]:80/tcp", 0))
	assert.Equal(t, uint16(4), index("10.0.0.2:80/tcp", 4))
	assert.Equal(t, uint16(3), index("10.0.0.3:80/tcp", 0))
	require.NoError(t, tables.RevNat6.Put(RevNatKey(5), RevNatValue{addrPort("[fd00::9]:1")}))
	assert.Equal(t, uint16(6), index("10.0.0.4:80/tcp", 0), "5 has a reverse-NAT entry without a service")
	assert.Equal(t, uint16(1), index("10.0.0.1:80/tcp", 0), "a service keeps its index")

	assert.Equal(t, uint16(9), index("10.0.0.1:80/tcp", 9))
	var r RevNatValue
	require.ErrorIs(t, tables.RevNat4.Lookup(RevNatKey(1), &r), ebpf.ErrKeyNotExist)
	require.NoError(t, tables.RevNat4.Lookup(RevNatKey(9), &r))
	assert.Equal(t, uint16(1), index("10.0.0.5:80/tcp", 0))

	before := contents(t, tables)
	_, err := NewWriter(tables).Upsert(t.Context(), Service{Frontend: frontend(t, "10.0.0.6:80/tcp"), RevNat: 2})
	require.ErrorIs(t, err, ErrInUse)
	assert.Equal(t, before, contents(t, tables))
}

func TestReverseNATIndexesRunOut(t *testing.T) {
	tables := newTables(t, nil)
	for n := range 65535 {
		f := Frontend{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(n))}
		require.NoError(t, tables.Services4.Put(serviceKey(f, 0), ServiceValue{RevNat: uint16(n + 1)}))
	}
	_, err := NewWriter(tables).Upsert(t.Context(), Service{Frontend: frontend(t, "10.0.0.2:1/tcp")})
	require.ErrorIs(t, err, ErrFull)
	assert.Contains(t, err.Error(), "reverse-NAT indexes")
}

func TestBackendIDIsReusedByAddressPortProtocolAndCluster(t *testing.T) {
	tables := newTables(t, nil)
	first := upsert(t, tables, Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: []Backend{
		{AddrPort: addrPort("10.1.0.1:80"), Protocol: ProtocolTCP},
		{AddrPort: addrPort("10.1.0.1:80"), Protocol: ProtocolUDP},
		{AddrPort: addrPort("10.1.0.1:81"), Protocol: ProtocolTCP},
		{AddrPort: addrPort("10.1.0.1:80"), Protocol: ProtocolTCP, ClusterID: 2},
	}})
	six := upsert(t, tables, Service{Frontend: frontend(t, "[fd00::1]:80/tcp"), Backends: backends("[fd01::1]:80")})
	assert.Equal(t, []uint32{1, 2, 3, 4}, []uint32{
		first.Backends[0].ID, first.Backends[1].ID, first.Backends[2].ID, first.Backends[3].ID,
	})
	assert.Equal(t, uint32(5), six.Backends[0].ID, "an id is used in one family only")

	second := upsert(t, tables, Service{
		Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: backends("10.1.0.9:80", "10.1.0.1:81", "10.1.0.1:80"),
	})
	assert.Equal(t, uint32(6), second.Backends[0].ID)
	assert.Equal(t, uint32(3), second.Backends[1].ID)
	assert.Equal(t, uint32(1), second.Backends[2].ID)

	// The state belongs to the backend, quarantine to the slot.
	changed := second
	changed.Backends = []Backend{second.Backends[2]}
	changed.Backends[0].State = BackendTerminating
	changed.Backends[0].Quarantined = true
	upsert(t, tables, changed)
	first, err := tables.Service(t.Context(), first.Frontend)
	require.NoError(t, err)
	assert.Equal(t, BackendTerminating, first.Backends[0].State)
	assert.False(t, first.Backends[0].Quarantined)
}

func TestBackendIDMayBeGiven(t *testing.T) {
	tables := newTables(t, nil)
	given := backends("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")
	given[1].ID = 1
	s := upsert(t, tables, Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: given})
	assert.Equal(t, []uint32{2, 1, 3}, []uint32{s.Backends[0].ID, s.Backends[1].ID, s.Backends[2].ID})

	before := contents(t, tables)
	taken := backends("10.1.0.4:80")
	taken[0].ID = 3
	_, err := NewWriter(tables).Upsert(t.Context(), Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: taken})
	require.ErrorIs(t, err, ErrInUse)
	taken = backends("10.1.0.4:80", "10.1.0.5:80")
	taken[0].ID, taken[1].ID = 9, 9
	_, err = NewWriter(tables).Upsert(t.Context(), Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: taken})
	require.ErrorIs(t, err, ErrInUse)
	assert.Equal(t, before, contents(t, tables))
}

func TestIDThatASlotRefersToIsNotGivenToAnotherBackend(t *testing.T) {
	tables := newTables(t, nil)
	other := frontend(t, "10.0.0.1:80/tcp")
	require.NoError(t, tables.Services4.Put(serviceKey(other, 1), ServiceValue{Union: 1, RevNat: 1}))
	s := upsert(t, tables, Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: backends("10.1.0.1:80")})
	assert.Equal(t, uint32(2), s.Backends[0].ID)
}

func TestOrphanedBackendsAreRemoved(t *testing.T) {
	tables := newTables(t, nil)
	a := frontend(t, "10.0.0.1:80/tcp")
	b := frontend(t, "10.0.0.2:80/tcp")
	upsert(t, tables, Service{Frontend: a, Backends: backends("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")})
	upsert(t, tables, Service{Frontend: b, Backends: backends("10.1.0.3:80")})
	// A backend that no service has had: its control plane is about to use it.
	require.NoError(t, tables.Backends4.Put(uint32(77), BackendValue{AddrPort: addrPort("10.1.0.7:80")}))

	upsert(t, tables, Service{Frontend: a, Backends: backends("10.1.0.2:80")})
	assert.ElementsMatch(t, []uint32{2, 3, 77}, backendIDs(t, tables.Backends4))
	var v ServiceValue
	require.NoError(t, tables.Services4.Lookup(serviceKey(a, 1), &v))
	assert.Equal(t, uint32(2), v.BackendID())
	for _, slot := range []uint16{2, 3} {
		require.ErrorIs(t, tables.Services4.Lookup(serviceKey(a, slot), &v), ebpf.ErrKeyNotExist)
	}

	require.NoError(t, deleteService(t, tables, a))
	assert.ElementsMatch(t, []uint32{3, 77}, backendIDs(t, tables.Backends4))
	require.NoError(t, deleteService(t, tables, b))
	assert.ElementsMatch(t, []uint32{77}, backendIDs(t, tables.Backends4))
}

func TestDeleteServiceRemovesSlotsThatItDoesNotCount(t *testing.T) {
	tables := newTables(t, nil)
	f := frontend(t, "10.0.0.1:80/tcp")
	upsert(t, tables, Service{Frontend: f, Backends: backends("10.1.0.1:80")})
	require.NoError(t, tables.Services4.Put(serviceKey(f, 5), ServiceValue{Union: 1}))
	s, err := tables.Service(t.Context(), f)
	require.NoError(t, err)
	assert.Len(t, s.Backends, 1)
	require.NoError(t, deleteService(t, tables, f))
	assert.Empty(t, contents(t, tables))
}

func TestDeleteServiceLeavesTheReverseNATEntryOfAnother(t *testing.T) {
	tables := newTables(t, nil)
	f := frontend(t, "10.0.0.1:80/tcp")
	upsert(t, tables, Service{Frontend: f})
	require.NoError(t, tables.RevNat4.Put(RevNatKey(1), RevNatValue{addrPort("10.0.0.9:80")}))
	require.NoError(t, deleteService(t, tables, f))
	assert.Len(t, contents(t, tables), 1)
}

func TestDeleteServiceThatIsNotThere(t *testing.T) {
	tables := newTables(t, nil)
	require.ErrorIs(t, deleteService(t, tables, frontend(t, "10.0.0.1:80/tcp")), ErrNotFound)
	require.ErrorIs(t, deleteService(t, tables, Frontend{}), ErrFamily)
	require.ErrorIs(t, deleteService(t, &Tables{}, frontend(t, "10.0.0.1:80/tcp")), ErrNoMap)
}

func TestSelectedBackendsAreTheActiveOnesOrElseTheTerminatingOnes(t *testing.T) {
	tables := newTables(t, nil)
	for _, c := range []struct {
		states        []BackendState
		count, qcount uint16
		order         []int
	}{
		{nil, 0, 0, nil},
		{[]BackendState{BackendTerminating, BackendActive, BackendActive}, 2, 1, []int{1, 2, 0}},
		{[]BackendState{BackendQuarantined, BackendTerminating, BackendMaintenance}, 1, 2, []int{1, 0, 2}},
		{[]BackendState{BackendQuarantined, BackendActive, BackendTerminating}, 1, 2, []int{1, 2, 0}},
		{[]BackendState{BackendQuarantined}, 0, 1, []int{0}},
	} {
		s := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Flags: FlagAffinity}
		for i, state := range c.states {
			s.Backends = append(s.Backends, Backend{AddrPort: addrPort(fmt.Sprintf("10.1.0.%d:80", i)), State: state})
		}
		written := upsert(t, tables, s)
		var order []int
		for _, b := range written.Backends {
			order = append(order, int(b.AddrPort.Addr().As4()[3]))
			assert.Equal(t, b.State == BackendQuarantined, b.Quarantined)
		}
		assert.Equal(t, c.order, order)
		var v ServiceValue
		require.NoError(t, tables.Services4.Lookup(serviceKey(s.Frontend, 0), &v))
		assert.Equal(t, [2]uint16{c.count, c.qcount}, [2]uint16{v.Count, v.QCount})

		var active []AffinityMatchKey
		for _, b := range written.Backends {
			if b.State == BackendActive {
				active = append(active, AffinityMatchKey{b.ID, 1})
			}
		}
		matches, err := tables.AffinityMatches()
		require.NoError(t, err)
		assert.ElementsMatch(t, active, matches)
	}
}

func TestAffinityMatchesFollowTheService(t *testing.T) {
	tables := newTables(t, nil)
	s := upsert(t, tables, Service{
		Frontend: frontend(t, "10.0.0.1:80/tcp"), Flags: FlagAffinity, Backends: backends("10.1.0.1:80", "10.1.0.2:80"),
	})
	matches := func() []AffinityMatchKey {
		all, err := tables.AffinityMatches()
		require.NoError(t, err)
		return all
	}
	assert.Equal(t, []AffinityMatchKey{{1, 1}, {2, 1}}, matches())
	s.RevNat = 8
	s = upsert(t, tables, s)
	assert.Equal(t, []AffinityMatchKey{{1, 8}, {2, 8}}, matches())
	s.Flags = 0
	upsert(t, tables, s)
	assert.Empty(t, matches())
}

func TestFamilyOfABackendIsThatOfTheService(t *testing.T) {
	tables := newTables(t, nil)
	for _, s := range []Service{
		{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80", "[fd01::1]:80")},
		{Frontend: frontend(t, "[fd00::1]:80/tcp"), Backends: backends("10.1.0.1:80")},
		{Frontend: frontend(t, "[fd00::1]:80/tcp"), Backends: backends("[::ffff:10.1.0.1]:80")},
		{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: []Backend{{}}},
		{Frontend: frontend(t, "10.0.0.1:80/tcp"), Flags: FlagNAT46x64, Backends: backends("[::ffff:10.1.0.1]:80")},
		{Frontend: Frontend{AddrPort: addrPort("[::ffff:10.0.0.1]:80")}},
		{},
	} {
		_, err := NewWriter(tables).Upsert(t.Context(), s)
		require.ErrorIs(t, err, ErrFamily)
		assert.Empty(t, contents(t, tables))
	}

	for _, f := range []string{"10.0.0.1:80/tcp", "[fd00::1]:80/tcp"} {
		s := upsert(t, tables, Service{
			Frontend: frontend(t, f), Flags: FlagNAT46x64, Backends: backends("10.1.0.1:80", "[fd01::1]:80"),
		})
		got, err := tables.Service(t.Context(), s.Frontend)
		require.NoError(t, err)
		assert.Equal(t, s, got)
	}
	assert.Len(t, backendIDs(t, tables.Backends4), 1)
	assert.Len(t, backendIDs(t, tables.Backends6), 1)
	require.NoError(t, deleteService(t, tables, frontend(t, "10.0.0.1:80/tcp")))
	require.NoError(t, deleteService(t, tables, frontend(t, "[fd00::1]:80/tcp")))
	assert.Empty(t, contents(t, tables))
}

func TestServiceThatTheMapsCannotHoldIsRefused(t *testing.T) {
	tables := newTables(t, nil)
	f := frontend(t, "10.0.0.1:80/tcp")
	for name, s := range map[string]Service{
		"fraction of a second":    {AffinityTimeout: time.Millisecond},
		"timeout too long":        {AffinityTimeout: MaxAffinityTimeout + time.Second},
		"proxy port without flag": {L7ProxyPort: 1},
		"timeout with proxy":      {Flags: FlagL7LoadBalancer, AffinityTimeout: time.Second},
		"algorithm with proxy":    {Flags: FlagL7LoadBalancer, Algorithm: AlgorithmMaglev},
		"backend twice":           {Backends: backends("10.1.0.1:80", "10.1.0.1:80")},
		"too many backends":       {Backends: make([]Backend, 65536)},
	} {
		s.Frontend = f
		_, err := NewWriter(tables).Upsert(t.Context(), s)
		require.ErrorIs(t, err, ErrInvalid, name)
		assert.Empty(t, contents(t, tables))
	}
}

func TestFullMapIsReportedAndEverythingUndone(t *testing.T) {
	const frontends4, backends4 = "10.0.0.%d:80/tcp", "10.1.0.%d:80"
	const frontends6, backends6 = "[fd00::%d]:80/tcp", "[fd01::%d]:80"
	for _, c := range []struct {
		name                string
		room                uint32
		frontends, backends string
		growingNeedsRoom    bool
	}{
		// A service with a backend fits, one with four more does not.
		{Services4Map, 3, frontends4, backends4, true},
		{Services6Map, 3, frontends6, backends6, true},
		{Backends4Map, 3, frontends4, backends4, true},
		{Backends6Map, 3, frontends6, backends6, true},
		{AffinityMatchMap, 3, frontends4, backends4, true},
		{RevNat4Map, 1, frontends4, backends4, false},
		{RevNat6Map, 1, frontends6, backends6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := newTables(t, map[string]uint32{c.name: c.room})
			small := upsert(t, tables, Service{
				Frontend: frontend(t, fmt.Sprintf(c.frontends, 1)), Flags: FlagAffinity,
				Backends: backends(fmt.Sprintf(c.backends, 1)),
			})
			before := contents(t, tables)

			large := small
			large.Flags |= FlagNodePort
			for n := 2; n <= 5; n++ {
				large.Backends = append(large.Backends, backends(fmt.Sprintf(c.backends, n))...)
			}
			// Changes what is there already: that has to be restored.
			large.Backends[0].Zone = 9

			if c.growingNeedsRoom {
				_, err := NewWriter(tables).Upsert(t.Context(), large)
				require.ErrorIs(t, err, ErrFull)
				assert.Contains(t, err.Error(), c.name)
				assert.Equal(t, before, contents(t, tables))
			}
			large.Frontend, large.RevNat = frontend(t, fmt.Sprintf(c.frontends, 2)), 0
			_, err := NewWriter(tables).Upsert(t.Context(), large)
			require.ErrorIs(t, err, ErrFull)
			assert.Contains(t, err.Error(), c.name)
			assert.Equal(t, before, contents(t, tables))

			is, err := tables.Service(t.Context(), small.Frontend)
			require.NoError(t, err)
			assert.Equal(t, small, is)
		})
	}
}

func TestCallThatFailsHalfWayIsUndone(t *testing.T) {
	for _, name := range []string{Services4Map, Backends4Map, RevNat4Map, AffinityMatchMap} {
		t.Run(name, func(t *testing.T) {
			dir := bpffs(t)
			tables := newTables(t, nil)
			s := upsert(t, tables, Service{
				Frontend: frontend(t, "10.0.0.1:80/tcp"), Flags: FlagAffinity, Backends: backends("10.1.0.1:80", "10.1.0.2:80"),
			})
			before := contents(t, tables)

			// This map can be read but not written.
			pin := filepath.Join(dir, name)
			require.NoError(t, (*tables.fields()[name]).Pin(pin))
			readOnly, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, readOnly.Close()) })
			broken := *tables
			*broken.fields()[name] = readOnly

			require.ErrorIs(t, deleteService(t, &broken, s.Frontend), unix.EPERM)
			assert.Equal(t, before, contents(t, tables))

			changed := s
			changed.RevNat = 7
			changed.Backends = backends("10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80")
			_, err = NewWriter(&broken).Upsert(t.Context(), changed)
			require.ErrorIs(t, err, unix.EPERM)
			assert.Equal(t, before, contents(t, tables))
		})
	}
}

func TestRunningProgramsAlwaysFindSlotsAndBackends(t *testing.T) {
	tables := newTables(t, nil)
	f := frontend(t, "10.0.0.1:80/tcp")
	all := make([]string, 40)
	for i := range all {
		all[i] = fmt.Sprintf("10.1.0.%d:80", i)
	}

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := walk(tables, f); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// The timeout makes every slot 0 another one, so that walk can tell them apart.
	generation := time.Duration(0)
	write := func(addrs []string) {
		generation++
		upsert(t, tables, Service{
			Frontend: f, AffinityTimeout: generation * time.Second, Backends: backends(addrs...),
		})
	}
	for n := range all {
		write(all[:n+1])
	}
	for n := len(all) - 1; n > 0; n-- {
		// From the other end, so that every slot changes.
		write(all[len(all)-n:])
	}
	for n := range 30 {
		// Backends that were not there before, and those that were are gone.
		write(all[n%2*20:][:20])
	}
	for range 30 {
		require.NoError(t, deleteService(t, tables, f))
		write(all[:20])
	}
	require.NoError(t, deleteService(t, tables, f))
	close(stop)
	readers.Wait()
	assert.Empty(t, contents(t, tables))
}

// walk does what a program does for a connection, for every slot. Between its
// look-ups the service may change, so a miss counts only if slot 0 and the slot
// are still the same afterwards.
func walk(tables *Tables, f Frontend) error {
	services := tables.family(f.is6()).services
	var master, now, slot, slotNow ServiceValue
	err := services.Lookup(serviceKey(f, 0), &master)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	same := func() bool {
		return services.Lookup(serviceKey(f, 0), &now) == nil && now == master
	}
	for n := uint16(1); n <= master.Count; n++ {
		if err := services.Lookup(serviceKey(f, n), &slot); err != nil {
			if same() {
				return fmt.Errorf("slot %d of %d: %w", n, master.Count, err)
			}
			return nil
		}
		var b BackendValue
		err := tables.family(f.is6()).backends.Lookup(slot.BackendID(), &b)
		if err != nil && slot.Flags.Has(FlagNAT46x64) {
			err = tables.family(!f.is6()).backends.Lookup(slot.BackendID(), &b)
		}
		if err != nil {
			again := services.Lookup(serviceKey(f, n), &slotNow)
			if again == nil && slotNow == slot && same() {
				return fmt.Errorf("backend %d of slot %d: %w", slot.BackendID(), n, err)
			}
			return nil
		}
	}
	return nil
}

func TestServiceWithEntriesMissingIsReadAsFarAsItIsThere(t *testing.T) {
	tables := newTables(t, nil)
	s := upsert(t, tables, Service{
		Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"),
	})
	require.NoError(t, tables.Services4.Delete(serviceKey(s.Frontend, 1)))
	require.NoError(t, tables.Backends4.Delete(s.Backends[1].ID))
	got, err := tables.Service(t.Context(), s.Frontend)
	require.NoError(t, err)
	assert.Equal(t, []Backend{{ID: 2}, s.Backends[2]}, got.Backends)

	// Counts that cannot be right are no reason to look up 131070 slots.
	require.NoError(t, tables.Services4.Put(serviceKey(s.Frontend, 0), ServiceValue{Count: 65535, QCount: 65535}))
	got, err = tables.Service(t.Context(), s.Frontend)
	require.NoError(t, err)
	assert.Len(t, got.Backends, 2)
}

func TestEntryWithAnotherLayoutIsReported(t *testing.T) {
	tables := newTables(t, nil)
	require.NoError(t, tables.Services4.Put(unhex(t, "0a000001 0050 0000 06 00 0001"), ServiceValue{}))
	_, err := tables.Services(t.Context())
	require.ErrorIs(t, err, ErrPadding)
	assert.Contains(t, err.Error(), Services4Map)
}

func TestTablesWithOneFamilyOnly(t *testing.T) {
	tables := newTables(t, nil)
	only := &Tables{Services4: tables.Services4, Backends4: tables.Backends4}
	s := upsert(t, only, Service{
		Frontend: frontend(t, "10.0.0.1:80/tcp"), Flags: FlagAffinity, Backends: backends("10.1.0.1:80"),
	})
	all, err := only.Services(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Service{s}, all)

	_, err = NewWriter(only).Upsert(t.Context(), Service{Frontend: frontend(t, "[fd00::1]:80/tcp"), Backends: backends("[fd01::1]:80")})
	require.ErrorIs(t, err, ErrNoMap)
	_, err = NewWriter(&Tables{Backends4: tables.Backends4}).Upsert(t.Context(),
		Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: backends("10.1.0.2:80")})
	require.ErrorIs(t, err, ErrNoMap)
	assert.Len(t, backendIDs(t, tables.Backends4), 1, "the backend of the failed call is gone")

	require.NoError(t, deleteService(t, only, s.Frontend))
	assert.Empty(t, contents(t, tables))
	_, err = only.AffinityMatches()
	require.ErrorIs(t, err, ErrNoMap)
	require.ErrorIs(t, only.AddAffinityMatch(1, 1), ErrNoMap)
	require.ErrorIs(t, only.RemoveSkipLB(1, addrPort("10.0.0.1:80")), ErrNoMap)
	skips, err := only.SkipLBs()
	require.NoError(t, err)
	assert.Empty(t, skips)
}

func TestSkipEntries(t *testing.T) {
	tables := newTables(t, map[string]uint32{SkipLB4Map: 2})
	four, six := addrPort("10.0.0.1:80"), addrPort("[fd00::1]:80")
	require.NoError(t, tables.AddSkipLB(9, four))
	require.NoError(t, tables.AddSkipLB(8, four))
	require.NoError(t, tables.AddSkipLB(7, six))
	require.NoError(t, tables.AddSkipLB(7, six), "twice is the same as once")
	require.ErrorIs(t, tables.AddSkipLB(1, four), ErrFull)
	require.ErrorIs(t, tables.AddSkipLB(1, addrPort("[::ffff:10.0.0.1]:80")), ErrFamily)

	skips, err := tables.SkipLBs()
	require.NoError(t, err)
	assert.Equal(t, []SkipLBKey{{8, four}, {9, four}, {7, six}}, skips)
	var v uint8
	require.NoError(t, tables.SkipLB6.Lookup(SkipLBKey{7, six}, &v))

	require.NoError(t, tables.RemoveSkipLB(7, six))
	require.ErrorIs(t, tables.RemoveSkipLB(7, six), ErrNotFound)
}

func TestAffinityMatchesByHand(t *testing.T) {
	tables := newTables(t, nil)
	require.NoError(t, tables.AddAffinityMatch(5, 2))
	require.NoError(t, tables.AddAffinityMatch(9, 1))
	require.NoError(t, tables.AddAffinityMatch(7, 1))
	all, err := tables.AffinityMatches()
	require.NoError(t, err)
	assert.Equal(t, []AffinityMatchKey{{7, 1}, {9, 1}, {5, 2}}, all)
	require.NoError(t, tables.RemoveAffinityMatch(5, 2))
	require.ErrorIs(t, tables.RemoveAffinityMatch(5, 2), ErrNotFound)
}

func TestIPCacheFindsTheLongestPrefix(t *testing.T) {
	tables := newTables(t, map[string]uint32{IPCacheMap: 3})
	host := netip.MustParsePrefix("192.0.2.1/32")
	require.NoError(t, tables.UpsertIPCache(host, IPCacheValue{Identity: IdentityHost}))
	remote := IPCacheValue{Identity: IdentityRemoteNode, Flags: IPCacheRemoteCluster}
	require.NoError(t, tables.UpsertIPCache(netip.MustParsePrefix("192.0.2.77/24"), remote))
	require.NoError(t, tables.UpsertIPCache(netip.MustParsePrefix("fd00::/64"), remote))
	require.ErrorIs(t, tables.UpsertIPCache(netip.MustParsePrefix("10.0.0.0/8"), remote), ErrFull)
	require.ErrorIs(t, tables.UpsertIPCache(netip.Prefix{}, remote), ErrFamily)

	for addr, want := range map[string]IPCacheValue{
		"192.0.2.1": {Identity: IdentityHost}, "192.0.2.2": remote, "fd00::1234": remote,
	} {
		a := netip.MustParseAddr(addr)
		var v IPCacheValue
		require.NoError(t, tables.IPCache.Lookup(IPCacheKey{Prefix: netip.PrefixFrom(a, a.BitLen())}, &v))
		assert.Equal(t, want, v, addr)
	}
	require.NoError(t, tables.RemoveIPCache(host))
	require.ErrorIs(t, tables.RemoveIPCache(host), ErrNotFound)
}

// bpffs mounts a BPF file system.
func bpffs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, ""), "these tests need CAP_SYS_ADMIN")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// openFiles returns the number of open file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

func TestOpenTablesOpensWhatIsPinned(t *testing.T) {
	dir := bpffs(t)
	files := openFiles(t)
	_, err := OpenTables(dir)
	require.ErrorIs(t, err, ErrNoMap)
	_, err = OpenTables(filepath.Join(dir, "nowhere"))
	require.ErrorIs(t, err, ErrNoMap)

	pin := func(name string, m *ebpf.Map) {
		require.NoError(t, m.Pin(filepath.Join(dir, name)))
		require.NoError(t, m.Close())
	}
	pin(Services4Map, newMap(t, Services4Map, 100))
	_, err = OpenTables(dir)
	require.ErrorIs(t, err, ErrNoMap, "no backends")
	pin(Backends4Map, newMap(t, Backends4Map, 100))
	tables, err := OpenTables(dir)
	require.NoError(t, err)
	assert.Nil(t, tables.Services6)
	s := upsert(t, tables, Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80")})
	require.NoError(t, tables.Close())
	require.NoError(t, tables.Close(), "twice is harmless")

	for name := range tables.fields() {
		if name != Services4Map && name != Backends4Map {
			pin(name, newMap(t, name, 100))
		}
	}
	tables, err = OpenTables(dir)
	require.NoError(t, err)
	for name, field := range tables.fields() {
		assert.NotNil(t, *field, name)
	}
	all, err := tables.Services(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Service{s}, all)
	require.NoError(t, tables.Close())
	assert.Equal(t, files, openFiles(t))
}

func TestOpenTablesRefusesAnotherLayout(t *testing.T) {
	for name, spec := range map[string]*ebpf.MapSpec{
		"type":  {Type: ebpf.LRUHash, KeySize: 12, ValueSize: 12, MaxEntries: 10},
		"key":   {Type: ebpf.Hash, KeySize: 16, ValueSize: 12, MaxEntries: 10},
		"value": {Type: ebpf.Hash, KeySize: 12, ValueSize: 16, MaxEntries: 10},
	} {
		t.Run(name, func(t *testing.T) {
			dir := bpffs(t)
			files := openFiles(t)
			m := makeMap(t, spec)
			require.NoError(t, m.Pin(filepath.Join(dir, Services4Map)))
			require.NoError(t, m.Close())
			_, err := OpenTables(dir)
			require.ErrorIs(t, err, ErrLayout)
			assert.Contains(t, err.Error(), Services4Map)
			assert.Equal(t, files, openFiles(t))
		})
	}
}

// Without /proc a pin cannot be opened, in the words of one that is not there.
func TestAPinThatCannotBeOpenedIsNotAbsent(t *testing.T) {
	dir := bpffs(t)
	for _, name := range []string{Services4Map, Backends4Map, Services6Map, Backends6Map} {
		m := newMap(t, name, 100)
		require.NoError(t, m.Pin(filepath.Join(dir, name)))
		require.NoError(t, m.Close())
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its mounts with it
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Unmount("/proc", unix.MNT_DETACH)
		}
		if err == nil {
			_, err = OpenTables(dir)
		}
		done <- err
	}()
	err := <-done
	require.ErrorContains(t, err, "/proc")
	require.NotErrorIs(t, err, ErrNoMap)
	require.NotErrorIs(t, err, os.ErrNotExist)
}
