// SPDX-License-Identifier: Apache-2.0

package lbmap

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pinnedTables makes maps that are pinned in a directory.
func pinnedTables(t testing.TB) (*Tables, string) {
	t.Helper()
	dir := bpffs(t)
	tables := newTables(t, nil)
	for name, m := range tables.fields() {
		require.NoError(t, (*m).Pin(filepath.Join(dir, name)))
	}
	return tables, dir
}

func openWriter(t testing.TB, dir string) *Writer {
	t.Helper()
	w, err := OpenWriter(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w
}

// randomService is one of a few, with a few of a few backends.
func randomService(r *rand.Rand) Service {
	v6 := r.IntN(3) == 0
	s := Service{Frontend: Frontend{Protocol: ProtocolTCP}}
	if r.IntN(2) == 0 {
		s.Flags = FlagAffinity
	}
	own, other := "10.0.0.%d", "fd00::%d"
	if v6 {
		own, other = other, own
	}
	s.Frontend.AddrPort = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(own, 1+r.IntN(12))), 80)
	if r.IntN(4) == 0 {
		s.RevNat = uint16(1 + r.IntN(40))
	}
	if r.IntN(6) == 0 {
		s.Flags |= FlagNAT46x64
		own = other
	}
	for _, n := range r.Perm(8)[:r.IntN(6)] {
		b := Backend{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(own, 100+n)), 8080), Protocol: ProtocolTCP}
		switch r.IntN(12) {
		case 0:
			b.State = BackendTerminating
		case 1:
			b.Quarantined = true
		case 2:
			b.ID = uint32(1 + r.IntN(30))
		}
		s.Backends = append(s.Backends, b)
	}
	return s
}

func TestWriterKnowsWhatTheMapsHave(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	tables := smallTables(t)
	w := NewWriter(tables)
	done := 0
	for range 2000 {
		before := contents(t, tables)
		s := randomService(r)
		var err error
		switch r.IntN(10) {
		case 0, 1, 2:
			_, err = w.Delete(t.Context(), s.Frontend)
		case 3:
			_, err = w.PlanUpsert(t.Context(), s)
			assert.Equal(t, before, contents(t, tables))
		case 4:
			if r.IntN(8) > 0 {
				continue
			}
			services := make(map[Frontend]Service)
			for range r.IntN(10) {
				other := randomService(r)
				for i := range other.Backends {
					other.Backends[i].State = BackendActive // the same for all
				}
				services[other.Frontend] = other
			}
			var wanted []Service
			for _, s := range services {
				wanted = append(wanted, s)
			}
			_, err = w.Sync(t.Context(), wanted)
		default:
			var c Change
			if c, err = w.Upsert(t.Context(), s); err == nil {
				read, err := tables.Service(t.Context(), s.Frontend)
				require.NoError(t, err)
				require.Equal(t, c.Service, read)
			}
		}
		if err != nil {
			require.Equal(t, before, contents(t, tables), "after %v", err)
			continue
		}
		done++
		assertCurrent(t, w, "")
		walkAll(t, tables)
	}
	assert.Greater(t, done, 500)
	_, err := w.Sync(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, contents(t, tables))
}

func TestServicesWrittenAtTheSameTimeLeadToTheirOwnBackends(t *testing.T) {
	tables, dir := pinnedTables(t)
	// Writers of other processes lock the directory as these do.
	writers := []*Writer{openWriter(t, dir), openWriter(t, dir), openWriter(t, dir)}
	var calls sync.WaitGroup
	for n := range 32 {
		calls.Go(func() {
			for m := range 5 {
				_, err := writers[(n+m)%len(writers)].Upsert(t.Context(), Service{
					Frontend: frontend(t, fmt.Sprintf("10.0.%d.%d:80/tcp", n, m)),
					Backends: backends(fmt.Sprintf("10.1.%d.%d:80", n, m)),
				})
				assert.NoError(t, err)
			}
		})
	}
	calls.Wait()
	services, err := tables.Services(t.Context())
	require.NoError(t, err)
	require.Len(t, services, 160)
	indexes := make(map[uint16]bool)
	for _, s := range services {
		own := s.Frontend.AddrPort.Addr().As4()
		require.Len(t, s.Backends, 1)
		assert.Equal(t, addrPort(fmt.Sprintf("10.1.%d.%d:80", own[2], own[3])), s.Backends[0].AddrPort, s.Frontend)
		indexes[s.RevNat] = true
	}
	assert.Len(t, indexes, 160)
}

func TestWriterNoticesWhatOthersHaveWritten(t *testing.T) {
	tables, dir := pinnedTables(t)
	one, two := openWriter(t, dir), openWriter(t, dir)
	write := func(w *Writer, f, backend string) Service {
		c, err := w.Upsert(t.Context(), Service{Frontend: frontend(t, f), Backends: backends(backend)})
		require.NoError(t, err)
		return c.Service
	}
	for n, w := range []*Writer{one, two, one, one, two} {
		s := write(w, fmt.Sprintf("10.0.0.%d:80/tcp", n), fmt.Sprintf("10.1.0.%d:80", n))
		assert.Equal(t, uint16(n+1), s.RevNat)
		assert.Equal(t, uint32(n+1), s.Backends[0].ID)
	}

	// Without a Writer, and in the way: what is there is read anew.
	f := frontend(t, "10.0.0.9:80/tcp")
	require.NoError(t, tables.Services4.Put(serviceKey(f, 0), ServiceValue{RevNat: 6}))
	require.NoError(t, tables.Backends4.Put(uint32(6), BackendValue{AddrPort: addrPort("10.1.0.99:80")}))
	assert.Equal(t, uint32(7), write(two, "10.0.0.8:80/tcp", "10.1.0.8:80").Backends[0].ID)
	before := contents(t, tables)
	write(two, "10.0.0.8:80/tcp", "10.1.0.8:80")
	assert.Equal(t, before, contents(t, tables))
}

func TestWriterOpensMapsAgainThatOthersAreInPlaceOf(t *testing.T) {
	_, dir := pinnedTables(t)
	w := openWriter(t, dir)
	s := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80")}
	_, err := w.Upsert(t.Context(), s)
	require.NoError(t, err)

	now := newTables(t, nil)
	for name, m := range now.fields() {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
		require.NoError(t, (*m).Pin(filepath.Join(dir, name)))
	}
	c, err := w.Upsert(t.Context(), s)
	require.NoError(t, err)
	assert.Equal(t, ActionAdd, c.Action)
	services, err := now.Services(t.Context())
	require.NoError(t, err)
	assert.Len(t, services, 1)
}

func TestCallWaitsForItsTurnAsLongAsItsContextLasts(t *testing.T) {
	_, dir := pinnedTables(t)
	w := openWriter(t, dir)
	other, err := os.Open(dir)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))

	s := Service{Frontend: frontend(t, "10.0.0.1:80/tcp")}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = w.Upsert(ctx, s)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.Upsert(t.Context(), s)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatal("did not wait", err)
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_UN))
	require.NoError(t, <-done)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = w.Delete(ctx, s.Frontend)
	require.ErrorIs(t, err, context.Canceled)
	_, err = w.tables.Services(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestNilOrClosedIsAnError(t *testing.T) {
	tables, dir := pinnedTables(t)
	closed, err := OpenWriter(dir)
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	require.NoError(t, closed.Close())
	for _, w := range []*Writer{nil, closed} {
		_, err := w.Upsert(t.Context(), Service{Frontend: frontend(t, "10.0.0.1:80/tcp")})
		require.ErrorIs(t, err, ErrClosed)
		_, err = w.Delete(t.Context(), frontend(t, "10.0.0.1:80/tcp"))
		require.ErrorIs(t, err, ErrClosed)
		_, err = w.Sync(t.Context(), nil)
		require.ErrorIs(t, err, ErrClosed)
		require.NoError(t, w.Close())
	}
	shut := *tables
	read, err := OpenTables(dir)
	require.NoError(t, err)
	require.NoError(t, read.Close())
	for _, r := range []*Tables{nil, read} {
		_, err := r.Services(t.Context())
		require.ErrorIs(t, err, ErrClosed)
		_, err = r.Service(t.Context(), frontend(t, "10.0.0.1:80/tcp"))
		require.ErrorIs(t, err, ErrClosed)
		_, err = r.Backends(t.Context())
		require.ErrorIs(t, err, ErrClosed)
		require.NoError(t, r.Close())
	}
	_, err = shut.Services(t.Context())
	require.NoError(t, err)
}

func TestSyncChangesWhatDiffersAndNothingElse(t *testing.T) {
	tables := newTables(t, nil)
	w := NewWriter(tables)
	service := func(n int, addrs ...string) Service {
		return Service{Frontend: frontend(t, fmt.Sprintf("10.0.0.%d:80/tcp", n)), Flags: FlagAffinity, Backends: backends(addrs...)}
	}
	first, err := w.Sync(t.Context(), []Service{
		service(1, "10.1.0.1:80", "10.1.0.2:80"), service(2, "10.1.0.2:80"), service(3, "10.1.0.3:80"), service(4),
	})
	require.NoError(t, err)
	assert.Equal(t, [4]int{4, 0, 0, 0}, [4]int{first.Added, first.Replaced, first.Kept, first.Deleted})
	// What nobody has is removed.
	require.NoError(t, tables.Backends4.Put(uint32(77), BackendValue{AddrPort: addrPort("10.1.0.7:80")}))
	require.NoError(t, tables.RevNat6.Put(RevNatKey(78), RevNatValue{addrPort("[fd00::9]:1")}))
	require.NoError(t, tables.AffinityMatch.Put(AffinityMatchKey{77, 78}, present))
	require.NoError(t, tables.Services4.Put(serviceKey(frontend(t, "10.0.0.8:80/tcp"), 3), ServiceValue{Union: 77}))

	w = NewWriter(tables)
	writes := 0
	w.beforeWrite = func() error {
		writes++
		return nil
	}
	wanted := []Service{service(5, "10.1.0.3:80"), service(4), service(2, "10.1.0.2:80", "10.1.0.5:80"), service(1, "10.1.0.1:80", "10.1.0.2:80")}
	before := contents(t, tables)
	planned, err := w.PlanSync(t.Context(), wanted)
	require.NoError(t, err)
	assert.Equal(t, before, contents(t, tables))
	second, err := w.Sync(t.Context(), wanted)
	require.NoError(t, err)
	assert.Equal(t, planned, second)
	assert.Equal(t, [4]int{1, 1, 2, 1}, [4]int{second.Added, second.Replaced, second.Kept, second.Deleted})
	assert.Equal(t, first.Services[2].Backends[0].ID, second.Services[0].Backends[0].ID, "a backend keeps its id from one service to another")
	assert.Equal(t, first.Services[0], second.Services[3])
	assert.Equal(t, first.Services[3], second.Services[1])
	// 3 goes: 2 entries of services, 1 of reverse NAT, 1 match. 5 comes: the same. 2 has a slot, a
	// backend and a match more, and another slot 0. What nobody has: 4 entries.
	assert.Equal(t, 4+4+4+4, writes)

	writes = 0
	third, err := w.Sync(t.Context(), second.Services)
	require.NoError(t, err)
	assert.Equal(t, 4, third.Kept)
	assert.Zero(t, writes)
	assertCurrent(t, w, "")

	services, err := tables.Services(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, second.Services, services)
}

func TestSyncRefusesWhatContradictsItself(t *testing.T) {
	tables := newTables(t, nil)
	w := NewWriter(tables)
	one := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80")}
	two := Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: backends("10.1.0.1:80")}
	two.Backends[0].State = BackendTerminating
	same := two
	same.RevNat, same.Backends = 9, nil
	also := one
	also.RevNat, also.Backends = 9, nil
	for _, c := range []struct {
		name   string
		wanted []Service
		err    error
	}{
		{"a service twice", []Service{one, one}, ErrInvalid},
		{"a backend in two states", []Service{one, two}, ErrInvalid},
		{"an index twice", []Service{same, also}, ErrInUse},
		{"no address", []Service{{}}, ErrFamily},
	} {
		_, err := w.Sync(t.Context(), c.wanted)
		require.ErrorIs(t, err, c.err, c.name)
		assert.Empty(t, contents(t, tables))
	}
}

func TestSyncExchangesIndexes(t *testing.T) {
	w := NewWriter(newTables(t, nil))
	one, two := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), RevNat: 1}, Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), RevNat: 2}
	_, err := w.Sync(t.Context(), []Service{one, two})
	require.NoError(t, err)
	one.RevNat, two.RevNat = 2, 1
	three := Service{Frontend: frontend(t, "10.0.0.3:80/tcp")}
	r, err := w.Sync(t.Context(), []Service{three, one, two})
	require.NoError(t, err)
	assert.Equal(t, uint16(3), r.Services[0].RevNat)
	assertCurrent(t, w, "")
	var v RevNatValue
	require.NoError(t, w.tables.RevNat4.Lookup(RevNatKey(1), &v))
	assert.Equal(t, two.Frontend.AddrPort, v.AddrPort)
}

// Both families share the indexes, and have reverse-NAT maps of their own.
func TestSyncGivesAnIndexToAServiceOfTheOtherFamily(t *testing.T) {
	w := NewWriter(newTables(t, nil))
	four, six := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), RevNat: 1}, Service{Frontend: frontend(t, "[fd00::1]:80/tcp"), RevNat: 1}
	for _, s := range []Service{four, six, four} {
		_, err := w.Sync(t.Context(), []Service{s})
		require.NoError(t, err)
		assertCurrent(t, w, "")
		list, err := w.tables.Services(t.Context())
		require.NoError(t, err)
		require.Len(t, list, 1)
		entries := 0
		for name := range contents(t, w.tables) {
			if strings.Contains(name, "reverse_nat") {
				entries++
			}
		}
		assert.Equal(t, 1, entries, "reverse-NAT entries after %v", s.Frontend)
	}
}

// A control plane may give one index to a service of each family.
func TestReverseNATEntriesOfTheFamiliesAreIndependent(t *testing.T) {
	four, six := Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), RevNat: 1}, Service{Frontend: frontend(t, "[fd00::1]:80/tcp"), RevNat: 1}
	moved := four
	moved.RevNat = 2
	for name, change := range map[string]func(*Writer) error{
		"delete": func(w *Writer) error { _, err := w.Delete(t.Context(), four.Frontend); return err },
		"index":  func(w *Writer) error { _, err := w.Upsert(t.Context(), moved); return err },
		"sync":   func(w *Writer) error { _, err := w.Sync(t.Context(), []Service{six}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			tables := newTables(t, nil)
			for _, v6 := range []bool{false, true} {
				s, only := four, Tables{Services4: tables.Services4, Backends4: tables.Backends4, RevNat4: tables.RevNat4}
				if v6 {
					s, only = six, Tables{Services6: tables.Services6, Backends6: tables.Backends6, RevNat6: tables.RevNat6}
				}
				_, err := NewWriter(&only).Upsert(t.Context(), s)
				require.NoError(t, err)
			}
			w := NewWriter(tables)
			require.NoError(t, change(w))
			assertCurrent(t, w, "")
			var address RevNatValue
			assert.ErrorIs(t, tables.RevNat4.Lookup(RevNatKey(1), &address), ebpf.ErrKeyNotExist)
			require.NoError(t, tables.RevNat6.Lookup(RevNatKey(1), &address))
			assert.Equal(t, six.Frontend.AddrPort, address.AddrPort)
			// What is left of the one family is no index that is free.
			c, err := w.Upsert(t.Context(), Service{Frontend: four.Frontend})
			require.NoError(t, err)
			assert.NotEqualValues(t, 1, c.Service.RevNat)
		})
	}
}

func TestRunningProgramsAlwaysFindSlotsAndBackendsDuringSync(t *testing.T) {
	tables := newTables(t, nil)
	w := NewWriter(tables)
	var fronts []Frontend
	for n := range 60 {
		fronts = append(fronts, frontend(t, fmt.Sprintf("10.0.0.%d:80/tcp", n)))
	}
	stands := Service{Frontend: frontend(t, "10.0.9.9:80/tcp"), Backends: backends("10.1.0.1:80", "10.1.0.2:80")}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	_, err := w.Sync(t.Context(), []Service{stands})
	require.NoError(t, err)
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, f := range append(fronts, stands.Frontend) {
				if err := walk(tables, f); err != nil {
					t.Error(f, err)
					return
				}
			}
			var master ServiceValue
			if err := tables.Services4.Lookup(serviceKey(stands.Frontend, 0), &master); err != nil || master.Count != 2 {
				t.Error("the service that stands", master, err)
				return
			}
		}
	})
	r := rand.New(rand.NewPCG(1, 2))
	for generation := range 150 {
		wanted := []Service{stands}
		for i, f := range fronts {
			if r.IntN(4) == 0 {
				continue
			}
			s := Service{Frontend: f, AffinityTimeout: time.Duration(generation) * time.Second}
			for _, n := range r.Perm(20)[:r.IntN(8)] {
				s.Backends = append(s.Backends, backends(fmt.Sprintf("10.1.%d.%d:80", (i+generation)%5, n))...)
			}
			wanted = append(wanted, s)
		}
		_, err := w.Sync(t.Context(), wanted)
		require.NoError(t, err)
	}
	close(stop)
	readers.Wait()
	assertCurrent(t, w, "")
}

func TestSyncThatDoesNotFitOrIsCancelledChangesNothing(t *testing.T) {
	tables := newTables(t, map[string]uint32{Backends4Map: 100})
	w := NewWriter(tables)
	wanted := func(backendsEach int) (all []Service) {
		for n := range 40 {
			s := Service{Frontend: frontend(t, fmt.Sprintf("10.0.0.%d:80/tcp", n))}
			for b := range backendsEach {
				s.Backends = append(s.Backends, backends(fmt.Sprintf("10.1.%d.%d:80", n, b))...)
			}
			all = append(all, s)
		}
		return all
	}
	_, err := w.Sync(t.Context(), wanted(1))
	require.NoError(t, err)
	before := contents(t, tables)
	_, err = w.Sync(t.Context(), wanted(3))
	require.ErrorIs(t, err, ErrFull)
	assert.Contains(t, err.Error(), Backends4Map)
	assert.Equal(t, before, contents(t, tables))

	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	w.beforeWrite = func() error {
		if n++; n == 2 {
			cancel()
		}
		return nil
	}
	_, err = w.Sync(ctx, wanted(2))
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, 2, n)
	assert.Equal(t, before, contents(t, tables))
	w.beforeWrite = nil
	assertCurrent(t, w, "")
	_, err = w.Sync(t.Context(), wanted(2))
	require.NoError(t, err)
}

// What the maps have no room for is found out where they are full in truth, too.
func TestMapThatTheKernelFindsFullIsUndone(t *testing.T) {
	tables := newTables(t, map[string]uint32{Backends4Map: 20})
	w := NewWriter(tables)
	upsertCached := func(s Service) error {
		_, err := w.Upsert(t.Context(), s)
		return err
	}
	require.NoError(t, upsertCached(Service{Frontend: frontend(t, "10.0.0.1:80/tcp"), Backends: backends("10.1.0.1:80")}))
	for id := range uint32(18) {
		require.NoError(t, tables.Backends4.Put(1000+id, BackendValue{AddrPort: addrPort("10.1.0.9:80")}))
	}
	before := contents(t, tables)
	err := upsertCached(Service{Frontend: frontend(t, "10.0.0.2:80/tcp"), Backends: backends("10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80")})
	require.ErrorIs(t, err, ErrFull)
	assert.Equal(t, before, contents(t, tables))
	assertCurrent(t, NewWriter(tables).read(t), "")
}

// read makes a Writer read the maps.
func (w *Writer) read(t *testing.T) *Writer {
	t.Helper()
	_, err := w.PlanDelete(t.Context(), frontend(t, "10.0.0.99:1/tcp"))
	require.ErrorIs(t, err, ErrNotFound)
	return w
}
