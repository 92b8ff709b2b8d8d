// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/revsk/revsk/bpf/iter"
	"github.com/revsk/revsk/inspect"
	"github.com/revsk/revsk/lbmap"
	"github.com/revsk/revsk/revnat"
)

var (
	front   = netip.MustParseAddrPort("10.96.0.1:53")
	backend = netip.MustParseAddrPort("10.0.1.1:5353")
)

func keyOf(cookie uint64, backend netip.AddrPort) hashKey {
	key, _ := ofTuple(cookie, &revnat.Tuple{Peer: backend, Service: front})
	return key
}

func valueOf(service netip.AddrPort, revNat uint16) hashValue {
	_, value := ofTuple(0, &revnat.Tuple{Peer: backend, Service: service, RevNATIndex: revNat})
	return value
}

// The layouts are those of the maps: as lbmap has them.
func TestHashLayouts(t *testing.T) {
	for _, at := range []string{"10.0.1.1:5353", "[fd00::1]:5353"} {
		backend := netip.MustParseAddrPort(at)
		key, value := keyOf(0x123456789a, backend), valueOf(backend, 0x1234)
		want, err := key.exported().MarshalBinary()
		require.NoError(t, err)
		wantValue, err := value.exported().MarshalBinary()
		require.NoError(t, err)
		assert.Equal(t, lbmap.ReverseSKKey{Cookie: 0x123456789a, Backend: backend}, key.exported())
		assert.Equal(t, lbmap.ReverseSKValue{Service: backend, RevNat: 0x1234}, value.exported())
		var got, gotValue []byte
		if key.is4() {
			got, err = binary.Append(nil, binary.NativeEndian, key.v4())
			require.NoError(t, err)
			gotValue, err = binary.Append(nil, binary.NativeEndian, value.v4())
			key4, value4 := key.v4(), value.v4()
			assert.Equal(t, key, key4.key())
			assert.Equal(t, value, value4.value())
		} else {
			got, err = binary.Append(nil, binary.NativeEndian, key)
			require.NoError(t, err)
			gotValue, err = binary.Append(nil, binary.NativeEndian, value)
		}
		require.NoError(t, err)
		assert.Equal(t, want, got)
		assert.Equal(t, wantValue, gotValue)
	}
}

// What has come and gone since is found however much of the hash is as it was.
func TestEachReadingOfTheHashFindsWhatIsNew(t *testing.T) {
	var maps [2]*ebpf.Map
	for i, name := range []string{lbmap.ReverseSK4Map, lbmap.ReverseSK6Map} {
		var err error
		maps[i], err = ebpf.NewMap(lbmap.MapSpec(name))
		require.NoError(t, err, "these tests need root")
		defer maps[i].Close()
	}
	h := hash{v4: maps[0], v6: maps[1]}
	m := &migration{worker: worker{dp: &datapath{hash: h}}, stale: services{}.cached()}
	added := func(from, to int) map[hashKey]bool {
		all := make(map[hashKey]bool)
		for i := from; i < to; i++ {
			at := []netip.AddrPort{backend, netip.MustParseAddrPort("[fd00::1]:5353")}[i%2]
			all[keyOf(uint64(i), at)] = true
			require.NoError(t, h.write([]hashKey{keyOf(uint64(i), at)}, []hashValue{valueOf(at, 1)}))
		}
		return all
	}
	for round, change := range []struct{ gone, first, end int }{{0, 1, 3000}, {0, 0, 0}, {3, 3000, 4000}, {2, 4000, 4010}, {1, 4010, 4020}} {
		if change.gone > 0 {
			var keys []hashKey
			for i, e := range m.entries {
				if i%change.gone == 0 {
					keys = append(keys, e.key)
				}
			}
			require.NoError(t, h.delete(keys))
		}
		want := added(change.first, change.end)
		fresh, err := m.snapshot()
		require.NoError(t, err)
		got := make(map[hashKey]bool)
		for _, e := range fresh {
			assert.False(t, got[e.key], "found twice")
			got[e.key] = true
		}
		assert.Equal(t, want, got, "reading %d", round)
		bySocket(fresh) // as a visit does it
		m.entries = append(m.entries, fresh...)
	}
}

func TestStale(t *testing.T) {
	service := func(at string, revNat uint16, backends int, flags lbmap.ServiceFlags) lbmap.Service {
		return lbmap.Service{
			Frontend: lbmap.Frontend{AddrPort: netip.MustParseAddrPort(at)},
			RevNat:   revNat, Flags: flags, Backends: make([]lbmap.Backend, backends),
		}
	}
	for _, c := range []struct {
		name  string
		svc   lbmap.Service
		entry lbmap.ReverseSKValue
		stale bool
	}{
		{"the service is there", service("10.96.0.1:53", 1, 1, 0), lbmap.ReverseSKValue{Service: front, RevNat: 1}, false},
		{"another index", service("10.96.0.1:53", 2, 1, 0), lbmap.ReverseSKValue{Service: front, RevNat: 1}, true},
		{"another address", service("10.96.0.2:53", 1, 1, 0), lbmap.ReverseSKValue{Service: front, RevNat: 1}, true},
		{"another port", service("10.96.0.1:54", 1, 1, 0), lbmap.ReverseSKValue{Service: front, RevNat: 1}, true},
		{"without backends", service("10.96.0.1:53", 1, 0, 0), lbmap.ReverseSKValue{Service: front, RevNat: 1}, true},
		{"of an L7 proxy", service("10.96.0.1:53", 1, 0, lbmap.FlagL7LoadBalancer), lbmap.ReverseSKValue{Service: front, RevNat: 1}, false},
		{"by its port only", service("0.0.0.0:53", 1, 1, lbmap.FlagNodePort), lbmap.ReverseSKValue{Service: front, RevNat: 1}, false},
		{"by its port only, of the other family", service("[::]:53", 1, 1, lbmap.FlagNodePort), lbmap.ReverseSKValue{Service: front, RevNat: 1}, true},
	} {
		s := services{c.svc.RevNat: {c.svc}}
		assert.Equal(t, c.stale, s.stale(c.entry), c.name)
	}
}

func TestEveryResultIsCounted(t *testing.T) {
	var entries []*entry
	for f := range results {
		for range int(f) + 1 {
			entries = append(entries, &entry{result: f})
		}
	}
	c := countResults(entries)
	assert.Equal(t, Counts{
		Entries: 36, Unknown: 1, MovedConn: 2, MovedPeers: 3, Present: 4, Stale: 5, Leaked: 6, Ended: 7, NoRoom: 8,
	}, c)
	// The name of a result is the name of its count in JSON.
	fields := reflect.TypeFor[Counts]()
	names := []string{"entries"}
	for f := range results {
		names = append(names, f.String())
	}
	var tags []string
	for i := range fields.NumField() {
		tags = append(tags, fields.Field(i).Tag.Get("json"))
	}
	assert.ElementsMatch(t, names, tags)
	assert.Equal(t, "result(8)", results.String())
}

func TestJudge(t *testing.T) {
	for f, want := range map[iter.FillRevskResult]Result{
		iter.FillRevskResultREVSK_RESULT_CONN:         ResultConn,
		iter.FillRevskResultREVSK_RESULT_PEERS:        ResultPeers,
		iter.FillRevskResultREVSK_RESULT_PRESENT:      ResultPresent,
		iter.FillRevskResultREVSK_RESULT_ENDED:        ResultEnded,
		iter.FillRevskResultREVSK_RESULT_DISCONNECTED: ResultLeaked,
		iter.FillRevskResultREVSK_RESULT_STALE:        ResultStale,
		iter.FillRevskResultREVSK_RESULT_NO_ROOM:      ResultNoRoom,
		iter.FillRevskResultREVSK_RESULT_CONFLICT:     ResultUnknown,
	} {
		e := entry{result: results}
		assert.True(t, e.judge(f))
		assert.Equal(t, want, e.result)
		assert.Equal(t, e.isKept(), e.why != "", "an entry that is kept says why")
	}
	assert.False(t, new(entry).judge(iter.FillRevskResultREVSK_RESULT_NOT_MET))
}

func TestWhatWouldBecomeOfAnEntry(t *testing.T) {
	key := keyOf(1, backend)
	connected := sighting{seen: true, protocol: lbmap.ProtocolTCP, remote: backend}
	elsewhere := sighting{seen: true, protocol: lbmap.ProtocolTCP, remote: front}
	datagram := sighting{seen: true, protocol: lbmap.ProtocolUDP}
	for _, c := range []struct {
		name  string
		seen  sighting
		entry entry
		want  Result
	}{
		{"nobody has the socket", sighting{}, entry{}, ResultLeaked},
		{"it is connected to the backend", connected, entry{}, ResultConn},
		{"a stream that is connected elsewhere", elsewhere, entry{}, ResultLeaked},
		{"a datagram socket has sent to the backend", datagram, entry{}, ResultPeers},
		{"its service is gone", datagram, entry{stale: true}, ResultStale},
		{"its service is gone, but it is connected to the backend", connected, entry{stale: true}, ResultConn},
		{"it holds the tuple", datagram, entry{stale: true, held: true}, ResultPresent},
		{"it holds the tuple, and is gone since", sighting{}, entry{held: true}, ResultLeaked},
	} {
		c.entry.key = key
		c.entry.judgeSeen(c.seen)
		assert.Equal(t, c.want, c.entry.result, c.name)
	}
}

func TestAnEntryWhoseSocketWasOnlySeenIsKept(t *testing.T) {
	e := entry{result: results}
	e.judgeUnvisited(true)
	assert.Equal(t, ResultUnknown, e.result)
	assert.NotEmpty(t, e.why)
	e = entry{result: results}
	e.judgeUnvisited(false)
	assert.Equal(t, ResultLeaked, e.result)
}

func TestTheEntriesOfASocketAreSideBySide(t *testing.T) {
	var entries []*entry
	for _, k := range []struct {
		cookie uint64
		port   uint16
	}{{2, 1}, {1, 2}, {2, 3}, {1, 1}, {2, 2}} {
		at := netip.AddrPortFrom(backend.Addr(), k.port)
		entries = append(entries, &entry{key: keyOf(k.cookie, at)})
	}
	x := bySocket(entries)
	assert.Equal(t, []uint64{1, 2}, x.cookies)
	for cookie, ports := range map[uint64][]uint16{1: {1, 2}, 2: {1, 2, 3}} {
		number, ok := x.number(cookie)
		require.True(t, ok)
		var have []uint16
		for _, e := range x.of(number) {
			assert.Equal(t, cookie, e.key.Cookie)
			assert.Same(t, e, x.find(&e.key))
			have = append(have, e.key.backend().Port())
		}
		assert.Equal(t, ports, have)
		assert.Equal(t, cookie == 2, x.has(number, netip.AddrPortFrom(backend.Addr(), 3)))
	}
	_, ok := x.number(3)
	assert.False(t, ok)
	missing := keyOf(1, netip.AddrPortFrom(backend.Addr(), 3))
	assert.Nil(t, x.find(&missing))
}

// A peer that a socket is connected to and has sent to as well has one entry, of the later of the two.
func TestTheHashHasWhatWasSentLast(t *testing.T) {
	other := netip.MustParseAddrPort("10.96.0.2:53")
	backend2 := netip.MustParseAddrPort("10.0.1.2:5353")
	list := []inspect.Socket{{
		Cookie: 1,
		Conn:   &revnat.Tuple{Peer: backend, Service: front, RevNATIndex: 1},
		Peers:  []revnat.Tuple{{Peer: backend, Service: other, RevNATIndex: 2}},
	}, {
		Cookie: 2,
		Conn:   &revnat.Tuple{Peer: backend, Service: front, RevNATIndex: 1},
	}, {
		Cookie: 3,
		Conn:   &revnat.Tuple{Peer: backend, Service: front, RevNATIndex: 1},
		Former: &revnat.Tuple{Peer: backend2, Service: front, RevNATIndex: 3},
	}}
	all := make(map[hashKey]hashValue)
	for _, s := range list {
		for tuple := range tuples(&s) {
			key, value := ofTuple(s.Cookie, tuple)
			assert.NotContains(t, all, key)
			all[key] = value
		}
	}
	assert.Equal(t, map[hashKey]hashValue{
		keyOf(1, backend):  valueOf(other, 2),
		keyOf(2, backend):  valueOf(front, 1),
		keyOf(3, backend):  valueOf(front, 1),
		keyOf(3, backend2): valueOf(front, 3),
	}, all)
}

func TestParseEngine(t *testing.T) {
	for _, e := range []Engine{EngineAuto, EngineIter, EnginePidfd} {
		got, err := ParseEngine(string(e))
		require.NoError(t, err)
		assert.Equal(t, e, got)
	}
	_, err := ParseEngine("fast")
	assert.ErrorContains(t, err, "auto, iter or pidfd")
	assert.ErrorIs(t, err, ErrInvalid)
}

// What another try may have is not for want of a feature.
func TestPassingErrorsAreNotRefusals(t *testing.T) {
	for _, errno := range []error{unix.ENOMEM, unix.EMFILE, unix.EAGAIN, unix.EINTR} {
		assert.False(t, refused(fmt.Errorf("%w: %w", ebpf.ErrNotSupported, errno)), errno)
		assert.False(t, refused(&ebpf.VerifierError{Cause: errno}), errno)
	}
	assert.True(t, refused(&ebpf.VerifierError{Cause: unix.EINVAL}))
	assert.True(t, refused(ebpf.ErrNotSupported))
}

// Where more sockets lack their entry than are noted, all are counted, by one look.
func TestSocketsThatLackTheirEntryAreCountedWhereThereIsNoRoom(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	at := netip.MustParseAddrPort(server.LocalAddr().String())
	for range 3 {
		c, err := net.Dial("udp4", at.String())
		require.NoError(t, err)
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			_, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		}))
		require.NoError(t, err)
	}
	defer func(n int) { lackingRoom = n }(lackingRoom)
	for _, room := range []int{1, 2, 3, 4, lackingRoom} {
		lackingRoom = room
		l := looker{engine: EngineIter, backends: []backendKey{{at, lbmap.ProtocolUDP}, {at, lbmap.ProtocolTCP}}}
		require.NoError(t, l.look(t.Context(), nil))
		require.Equal(t, map[backendKey]int{l.backends[0]: 3}, l.withoutEntry, "%d", room)
	}
}
